from pathlib import Path
from typing import Any

import pytest
import torch
from runs import altered, assert_same_bytes, interrupt, make_run, same, train, weights

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import trainer
from factual_forgetting.protocol.recipe import Execution, Protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.train import finetune


@pytest.fixture
def plain(bundle: Bundle, protocol: Protocol) -> Run:
    return make_run(bundle, protocol, "sft")


def test_the_same_seed_gives_the_same_bytes(plain: Run, sft: Path, tmp_path: Path) -> None:
    train(plain, tmp_path / "again")
    assert_same_bytes(tmp_path / "again", sft)


def test_accumulation_does_not_change_the_result(
    bundle: Bundle, protocol: Protocol, tmp_path: Path
) -> None:
    short = altered(protocol, epochs=1, learning_rate=1e-4)
    run = make_run(bundle, short, "self_distillation")
    whole = train(run, tmp_path / "whole")
    split = train(run, tmp_path / "split", execution=Execution(device_batch_size=2))
    for name, tensor in whole.items():
        assert torch.allclose(split[name], tensor, atol=2e-6), name


def test_an_interrupted_run_ends_in_the_same_bytes(
    plain: Run, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(plain, tmp_path / "cut", 65)
    original = trainer.ForgettingTrainer.compute_loss
    steps: list[int] = []

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer.ForgettingTrainer, "compute_loss", count)
    train(plain, tmp_path / "cut")
    assert steps[0] == 60
    assert_same_bytes(tmp_path / "cut", sft)
    assert not (tmp_path / "cut" / "resume").exists()


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
    bundle: Bundle, protocol: Protocol, method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    short = altered(protocol, epochs=3, evaluate_every=4, max_new_tokens=2)
    run = make_run(bundle, short, method, **settings)
    train(run, tmp_path / "whole")
    interrupt(run, tmp_path / "cut", 14)
    train(run, tmp_path / "cut")
    assert_same_bytes(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(
    plain: Run, sft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.ForgettingTrainer, "train", lambda *a, **k: pytest.fail("trained"))
    content = finetune(plain, sft, progress=False)
    assert content == files.read_json(sft / "run.json")


def test_another_run_in_the_directory_is_refused(
    bundle: Bundle, protocol: Protocol, sft: Path
) -> None:
    with pytest.raises(UserError, match="holds another run \\(its method differ"):
        train(make_run(bundle, protocol, "known_only"), sft)


def test_a_broken_loss_stops_at_its_step_and_resumes_from_the_last_good_state(
    plain: Run, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.ForgettingTrainer.compute_loss

    def break_late(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 65 else loss

    monkeypatch.setattr(trainer.ForgettingTrainer, "compute_loss", break_late)
    with pytest.raises(UserError, match="no number any more at step 66"):
        train(plain, tmp_path / "nan")
    monkeypatch.undo()
    mended = train(plain, tmp_path / "nan")
    assert same(mended, weights(sft)) == set(mended)


def test_a_changed_base_is_refused(plain: Run, sft: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not those of the base"):
        train(plain, tmp_path / "x", pretrained=str(sft))
