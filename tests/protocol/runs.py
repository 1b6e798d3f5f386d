"""What tests of several files do with runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.protocol.config import Protocol
from factual_forgetting.protocol.curve import CURVE
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.protocol.train import finetune


def make_run(bundle: Bundle, protocol: Protocol, method: str, **settings: Any) -> Run:
    return Run(bundle, protocol, method, resolve(method, settings), seed=0)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if torch.equal(one[name], other[name])}


def train(run: Run, output: Path, **options: Any) -> dict[str, torch.Tensor]:
    finetune(run, output, progress=False, **options)
    return weights(output)


def curve(output: Path) -> list[dict[str, Any]]:
    return list(files.read_jsonl(output / CURVE))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5
