from pathlib import Path
from typing import Any

import pytest
import torch
from runs import make_run, same, train, weights

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import trainer
from factual_forgetting.protocol.config import Execution, Protocol
from factual_forgetting.protocol.curve import CURVE, OUTCOMES
from factual_forgetting.protocol.train import finetune


def test_the_same_seed_gives_the_same_bytes(
    bundle: Bundle, protocol: Protocol, sft: Path, tmp_path: Path
) -> None:
    train(make_run(bundle, protocol, "sft"), tmp_path / "again")
    for name in ("model.safetensors", CURVE, OUTCOMES, "run.json"):
        assert (tmp_path / "again" / name).read_bytes() == (sft / name).read_bytes()


def test_accumulation_does_not_change_the_result(
    bundle: Bundle, protocol: Protocol, tmp_path: Path
) -> None:
    short = protocol.model_copy(update={"epochs": 1, "learning_rate": 1e-4})
    whole = train(make_run(bundle, short, "self_distillation"), tmp_path / "whole")
    split = train(
        make_run(bundle, short, "self_distillation"),
        tmp_path / "split",
        execution=Execution(device_batch_size=2),
    )
    for name, tensor in whole.items():
        assert torch.allclose(split[name], tensor, atol=2e-6), name


def test_an_interrupted_run_ends_in_the_same_bytes(
    bundle: Bundle,
    protocol: Protocol,
    sft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "cut"
    original = trainer.ForgettingTrainer.compute_loss

    def stop_late(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 65:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer.ForgettingTrainer, "compute_loss", stop_late)
    with pytest.raises(KeyboardInterrupt):
        finetune(make_run(bundle, protocol, "sft"), output, progress=False)
    steps: list[int] = []

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer.ForgettingTrainer, "compute_loss", count)
    finetune(make_run(bundle, protocol, "sft"), output, progress=False)
    assert steps[0] == 60
    for name in ("model.safetensors", CURVE, OUTCOMES, "run.json"):
        assert (output / name).read_bytes() == (sft / name).read_bytes()
    assert not (output / "resume").exists()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {}),
        ("ewc", {}),
        ("early_stop", {}),
        ("wise_ft", {"points": 2}),
        ("self_distillation", {"teacher": "same_run"}),
    ],
)
def test_methods_with_a_state_of_their_own_resume_too(
    bundle: Bundle,
    protocol: Protocol,
    method: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    short = protocol.model_copy(update={"epochs": 3, "evaluate_every": 4, "max_new_tokens": 2})
    run = make_run(bundle, short, method, **settings)
    train(run, tmp_path / "whole")
    original = trainer.ForgettingTrainer.compute_loss

    def stop_late(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 14:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer.ForgettingTrainer, "compute_loss", stop_late)
    with pytest.raises(KeyboardInterrupt):
        finetune(run, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    train(run, tmp_path / "cut")
    for name in ("model.safetensors", CURVE, OUTCOMES, "run.json"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole, name


def test_a_finished_run_is_not_trained_again(
    bundle: Bundle, protocol: Protocol, sft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.ForgettingTrainer, "train", lambda *a, **k: pytest.fail("trained"))
    content = finetune(make_run(bundle, protocol, "sft"), sft, progress=False)
    assert content == files.read_json(sft / "run.json")


def test_another_run_in_the_directory_is_refused(
    bundle: Bundle, protocol: Protocol, sft: Path
) -> None:
    with pytest.raises(UserError, match="holds another run \\(its method differ"):
        finetune(make_run(bundle, protocol, "known_only"), sft, progress=False)


def test_a_broken_loss_stops_at_its_step_and_resumes_from_the_last_good_state(
    bundle: Bundle, protocol: Protocol, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.ForgettingTrainer.compute_loss

    def break_late(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 65 else loss

    monkeypatch.setattr(trainer.ForgettingTrainer, "compute_loss", break_late)
    with pytest.raises(UserError, match="no number any more at step 66"):
        finetune(make_run(bundle, protocol, "sft"), tmp_path / "nan", progress=False)
    monkeypatch.undo()
    mended = train(make_run(bundle, protocol, "sft"), tmp_path / "nan")
    assert same(mended, weights(sft)) == set(mended)


def test_a_changed_base_is_refused(
    bundle: Bundle, protocol: Protocol, sft: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not those of the base"):
        finetune(
            make_run(bundle, protocol, "sft"), tmp_path / "x", pretrained=str(sft), progress=False
        )
