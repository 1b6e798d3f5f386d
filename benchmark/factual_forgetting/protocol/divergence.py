"""How far a model's predictions on held-out facts have moved from the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import losses
from factual_forgetting.protocol.data import collate, encode, limit

_BATCH = 64


class DivergenceFromBase:
    """Mean KL(base || model) over the answer tokens of held-out facts, in the training text.

    EOS is left out: that answers end with it is what the task teaches, and no forgetting.
    """

    def __init__(self, base: Any, tokenizer: Any, facts: Sequence[Fact]) -> None:
        """Keeps the base's predictions.

        Args:
            base: The base, in the checkpoint's dtype and eval mode.
            tokenizer: Its tokenizer.
            facts: Held-out facts.
        """
        rows = encode(facts, tokenizer, limit(base))
        pad = tokenizer.pad_token_id or 0
        self._batches = [collate(rows[i : i + _BATCH], pad) for i in range(0, len(rows), _BATCH)]
        self._expected = [self._predict(base, batch).cpu() for batch in self._batches]

    def __call__(self, model: Any) -> float:
        """Returns the divergence of a model, in nats a token."""
        total, count = 0.0, 0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            predicted = self._predict(model, batch)
            taught = expected.to(predicted.device)
            total += losses.divergence(predicted, taught, 1.0, "forward").item()
            count += len(predicted)
        return total / count

    @staticmethod
    def _predict(model: Any, batch: dict[str, Tensor]) -> Tensor:
        labels = batch["labels"].to(model.device)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            return losses.answer_logits(model(**inputs).logits, labels)
