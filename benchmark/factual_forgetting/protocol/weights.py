"""Weights: loaded whole, frozen as a teacher, averaged, and as a checkpoint holds them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from factual_forgetting.engines.loading import load_model
from factual_forgetting.engines.models import text_config
from factual_forgetting.errors import InputError
from factual_forgetting.protocol.context import Step
from factual_forgetting.protocol.recipe import Stored


def load_weights(path: Path, device: Any, attention: str | None = None) -> Any:
    """Returns the model of a checkpoint directory in fp32, whatever it is saved in."""
    return load_model(path, dtype=torch.float32, attn_implementation=attention).to(device)


@dataclass
class Frozen:
    """A frozen model in a directory: the base, or a snapshot, written when first asked for.

    It teaches in bf16 autocast, or in fp32.
    """

    path: Path
    snapshot: bool = False
    bf16: bool = False
    _model: Any = None

    def at(self, step: Step) -> Any:
        """Returns the model in eval mode on the student's device, sharded as the student is.

        Raises:
            UserError: If its vocabulary isn't the student's.
        """
        if self._model is None:
            if self.snapshot:
                step.save(self.path)
            attention = step.model.config._attn_implementation
            # What is sharded goes to the device layer by layer, not whole.
            sharded = isinstance(step.model, FSDPModule)
            device = "cpu" if sharded else step.logits.device
            model = load_weights(self.path, device, attention)
            own, students = (text_config(m).vocab_size for m in (model, step.model))
            if own != students:
                raise InputError(
                    f"The teacher in {self.path} has {own} tokens, the student {students}. "
                    "Distillation needs one vocabulary."
                )
            self._model = _shard_alike(model.requires_grad_(False).eval(), step.model)
        return self._model


def _shard_alike(model: Any, student: Any) -> Any:
    """Shards a model as `fully_shard` sharded the student; leaves it whole otherwise.

    Tied weights are the root's: no two parts may hold the same.
    """
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    sharded = [name for name, part in student.named_modules() if isinstance(part, FSDPModule)]
    for name in reversed(sharded):
        part = model.get_submodule(name)
        if part is model or all(places[id(parameter)] == 1 for parameter in part.parameters()):
            fully_shard(part, reshard_after_forward=True)
    return model


@contextmanager
def computing(model: Any, *, bf16: bool) -> Iterator[Any]:
    """Computes a model in bf16 autocast or in fp32, whatever wraps its forward pass.

    accelerate puts the student's autocast into its `forward`; hooks of sharding are elsewhere.
    """
    wrapped = vars(model).pop("forward", None)
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            yield model
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped


def averaged(base: Any, model: Any, alpha: float) -> Any:
    """Returns a model with weights `(1 - alpha) * base + alpha * model`."""
    start = dict(base.named_parameters())
    with torch.no_grad():
        return _holding(
            model, {n: (1 - alpha) * start[n] + alpha * p for n, p in model.named_parameters()}
        )


def as_checkpoint(model: Any, stored: Stored, weights: Mapping[str, Tensor] | None = None) -> Any:
    """Returns a copy of a model as it would be saved and loaded: in the checkpoint's dtype.

    Args:
        model: The model.
        stored: How the checkpoint holds it.
        weights: Its weights, if it doesn't hold them itself.
    """
    kind, adapted = getattr(torch, stored.dtype), hasattr(model, "merge_and_unload")
    # Adapters are merged before anything is rounded.
    cast = torch.float32 if adapted else kind
    own = weights or dict(model.named_parameters())
    bare = _holding(model, {name: w.detach().to(cast, copy=not weights) for name, w in own.items()})
    # accelerate puts autocast around the forward pass of a model in training; the class's own
    # forward pass is what a loaded checkpoint has.
    vars(bare).pop("forward", None)
    if adapted:
        bare = bare.merge_and_unload()
    return (bare.to(kind) if stored.all_buffers else _cast_stored(bare, kind)).eval()


def _cast_stored(model: Any, kind: torch.dtype) -> Any:
    """Casts what a checkpoint would hold; what is computed at loading stays in fp32."""
    for _, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(kind)
    return model


def hollow(model: Any) -> Any:
    """Returns a copy of a model without its weights, to be filled by `as_checkpoint`."""
    empty = {n: torch.empty_like(p, device="meta") for n, p in model.named_parameters()}
    return _holding(model, empty)


def gathered(model: Any, dtype: str, *, keep: bool = True, device: Any = None) -> dict[str, Tensor]:
    """Gathers the weights of a sharded model, each cast before the next comes.

    Every process calls it.

    Args:
        model: The model, sharded by `fully_shard`.
        dtype: Name of the dtype to cast to; adapters stay in fp32, to be merged in it.
        keep: Whether this process wants them.
        device: Where they go; None leaves them where they are.
    """
    kind = getattr(torch, "float32" if hasattr(model, "merge_and_unload") else dtype)
    found = {}
    for name, parameter in model.named_parameters():
        part = parameter.detach()
        whole = part.full_tensor() if isinstance(part, DTensor) else part.clone()
        if keep:
            found[name] = whole.to(device or whole.device, kind)
    return found


def _holding(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Returns a copy of a model with other weights, without copying its own on the way."""
    held = {
        id(parameter): torch.nn.Parameter(weights[name], parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, held)
