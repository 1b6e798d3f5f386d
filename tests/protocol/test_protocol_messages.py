"""What users are told where nothing else of the protocol's tests tells it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import InputError, PackageError, UserError
from factual_forgetting.protocol.context import Penalty
from factual_forgetting.protocol.curve import CURVE, read_curve
from factual_forgetting.protocol.methods import METHODS
from factual_forgetting.protocol.recipe import Execution, Protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import Lora, MethodSettings
from factual_forgetting.protocol.train import finetune
from factual_forgetting.protocol.trainer import ForgettingTrainer, arguments
from small import make_model


@pytest.mark.parametrize("steps", [[0], [0, 20, 10]])
def test_a_curve_that_is_cut(tmp_path: Path, steps: list[int]) -> None:
    files.write_jsonl(tmp_path / CURVE, [{"step": step, "loss": None} for step in steps])
    with pytest.raises(InputError, match=r"its steps don't rise\. Train again"):
        read_curve(tmp_path)


def test_lora_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PackageError, match=r"pip install 'factual-forgetting\[hf\]'"):
        METHODS["lora"].prepare(None, Lora())


def test_lora_on_modules_that_a_model_lacks() -> None:
    with pytest.raises(InputError, match=r"doesn't fit this model .* Give other targets"):
        METHODS["lora"].prepare(make_model("llama", 300), Lora(target="nowhere"))


def test_a_bundle_that_names_no_base(bundle: Bundle, protocol: Protocol) -> None:
    nameless = {**bundle.manifest, "base": {**bundle.manifest["base"], "pretrained": None}}
    run = Run(replace(bundle, manifest=nameless), protocol, "sft", MethodSettings(), seed=0)
    with pytest.raises(InputError, match=r"where its base is\. Give --model_args pretrained=…"):
        run.locate_base()


def test_a_folder_with_a_checkpoint(bundle: Bundle, protocol: Protocol, tmp_path: Path) -> None:
    files.write_json(tmp_path / "config.json", {})
    run = Run(bundle, protocol, "sft", MethodSettings(), seed=0)
    with pytest.raises(UserError, match=r"a checkpoint already\. Choose another --output_path"):
        finetune(run, tmp_path)


def test_a_pull_on_weights_that_are_sharded(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ForgettingTrainer, "sharded", True)
    penalty = Penalty(lambda step: step.logits.sum(), of_weights=True)
    given = arguments(protocol, 10, 0, tmp_path, Execution())
    with pytest.raises(InputError, match=r"Train it by data parallelism, without FSDP"):
        ForgettingTrainer(8, penalty, args=given, model=make_model("llama", 300))
