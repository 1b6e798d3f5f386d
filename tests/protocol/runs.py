"""What tests of several files do with runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.protocol import trainer
from factual_forgetting.protocol.curve import CURVE, OUTCOMES
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.protocol.train import finetune

Weights = dict[str, torch.Tensor]


def make_run(
    bundle: Bundle, protocol: Protocol, method: str, foreign_base: Any = None, **settings: Any
) -> Run:
    return Run(bundle, protocol, method, resolve(method, settings), 0, foreign_base)


def altered(protocol: Protocol, **values: Any) -> Protocol:
    return protocol.model_copy(update=values)


def weights(path: Path) -> Weights:
    return load_file(path / "model.safetensors")


def same(one: Weights, other: Weights) -> set[str]:
    return {name for name in one if torch.equal(one[name], other[name])}


def train(run: Run, output: Path, **options: Any) -> Weights:
    finetune(run, output, progress=False, **options)
    return weights(output)


def interrupt(run: Run, output: Path, step: int, **options: Any) -> None:
    """Trains until a step, as a user would stop it."""
    original = trainer.ForgettingTrainer.compute_loss

    def stop_late(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.ForgettingTrainer, "compute_loss", stop_late)
        with pytest.raises(KeyboardInterrupt):
            train(run, output, **options)


def assert_same_bytes(one: Path, other: Path) -> None:
    for name in ("model.safetensors", CURVE, OUTCOMES, "run.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def curve(output: Path) -> list[dict[str, Any]]:
    return list(files.read_jsonl(output / CURVE))


def distance(one: Weights, other: Weights) -> float:
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5
