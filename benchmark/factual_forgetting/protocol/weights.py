"""Weights: loaded whole, frozen as a teacher, averaged, and as a checkpoint holds them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import AutoModelForCausalLM

from factual_forgetting.errors import InputError
from factual_forgetting.protocol.context import Step


def load_weights(path: Path, device: Any, attention: str | None = None) -> Any:
    """Returns the model of a checkpoint directory in fp32, whatever it is saved in."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, attn_implementation=attention
    ).to(device)


@dataclass
class Frozen:
    """A frozen model in a directory: the base, or a snapshot, written when first asked for."""

    path: Path
    snapshot: bool = False
    _model: Any = None

    def at(self, step: Step) -> Any:
        """Returns the model in eval mode on the student's device, sharded as the student is.

        Raises:
            UserError: If its vocabulary isn't the student's.
        """
        if self._model is None:
            if self.snapshot:
                step.save(self.path)
            student = step.model.config
            model = load_weights(self.path, step.logits.device, student._attn_implementation)
            if model.config.vocab_size != student.vocab_size:
                raise InputError(
                    f"The teacher in {self.path} has {model.config.vocab_size} tokens, the "
                    f"student {student.vocab_size}. Distillation needs one vocabulary."
                )
            self._model = _shard_alike(model.requires_grad_(False).eval(), step.model)
        return self._model


def _shard_alike(model: Any, student: Any) -> Any:
    """Shards a model as `fully_shard` sharded the student; leaves it whole otherwise."""
    sharded = [name for name, part in student.named_modules() if isinstance(part, FSDPModule)]
    for name in reversed(sharded):
        fully_shard(model.get_submodule(name), reshard_after_forward=True)
    return model


def averaged(base: Any, model: Any, alpha: float) -> Any:
    """Returns a model with weights `(1 - alpha) * base + alpha * model`."""
    result = copy.deepcopy(model)
    start = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            parameter.copy_((1 - alpha) * start[name] + alpha * parameter)
    return result


def as_checkpoint(model: Any, dtype: str) -> Any:
    """Returns a copy of a model as it would be saved and loaded: in the checkpoint's dtype."""
    bare = copy.deepcopy(model)
    # accelerate puts autocast around the forward pass of a model in training; the class's own
    # forward pass is what a loaded checkpoint has.
    vars(bare).pop("forward", None)
    if hasattr(bare, "merge_and_unload"):
        bare = bare.merge_and_unload()
    return bare.to(getattr(torch, dtype)).eval()
