"""How far a model's predictions on held-out facts have moved from the base's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from factual_forgetting.bundle.manifest import HELDOUT
from factual_forgetting.facts.fact import stable_hash
from factual_forgetting.protocol import losses
from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.weights import as_checkpoint

_BATCH = 64


def divergence_from_base(context: Context, protocol: Protocol) -> Callable[[Any], float]:
    """Keeps the base's predictions on `kl_sample` facts of D_Held.

    Returns:
        Measures the mean KL(base || model) over the answer tokens of these facts, in the training
        text, in nats a token. EOS is left out: that answers end with it is what the task teaches,
        and no forgetting.
    """
    held = [item.fact for item in context.bundle.splits[HELDOUT]]
    drawn = sorted(held, key=lambda fact: stable_hash("divergence", fact.id))
    rows = context.encode(drawn[: protocol.kl_sample])
    batches = [context.collate(rows[i : i + _BATCH]) for i in range(0, len(rows), _BATCH)]
    base = as_checkpoint(context.model, protocol.checkpoint_dtype)
    expected = [_predict(base, batch).cpu() for batch in batches]

    def measure(model: Any) -> float:
        total, count = 0.0, 0
        for batch, taught in zip(batches, expected, strict=True):
            predicted = _predict(model, batch)
            taught = taught.to(predicted.device)
            total += losses.kl_divergence(predicted, taught, 1.0, "forward").item()
            count += len(predicted)
        return total / count

    return measure


def _predict(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    labels = batch["labels"].to(model.device)
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        return losses.answer_logits(model(**inputs).logits, labels)
