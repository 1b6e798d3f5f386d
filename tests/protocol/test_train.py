from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import methods, trainer
from factual_forgetting.protocol.config import Protocol
from factual_forgetting.protocol.curve import CURVE, OUTCOMES
from factual_forgetting.protocol.train import Run, finetune


def make_run(bundle: Bundle, protocol: Protocol, method: str, **settings: Any) -> Run:
    _, config = methods.resolve(method, settings)
    return Run(bundle, protocol, method, config, seed=0)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if torch.equal(one[name], other[name])}


def train(run: Run, output: Path, **options: Any) -> dict[str, torch.Tensor]:
    finetune(run, output, progress=False, **options)
    return weights(output)


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
        make_run(bundle, short, "self_distillation"), tmp_path / "split", device_batch_size=2
    )
    for name, tensor in whole.items():
        assert torch.allclose(split[name], tensor, atol=2e-6), name


def test_freezing_leaves_the_rest_bit_equal(
    bundle: Bundle, protocol: Protocol, base: Path, tmp_path: Path
) -> None:
    run = make_run(bundle, protocol, "freeze", trainable="attention")
    trained = train(run, tmp_path / "frozen")
    unchanged = same(weights(base), trained)
    attention = {name for name in trained if ".self_attn." in name}
    assert unchanged == set(trained) - attention


@pytest.mark.parametrize("teacher", ["base", "snapshot"])
def test_the_teacher_stays_what_its_file_says(
    bundle: Bundle,
    protocol: Protocol,
    teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms: list[float] = []
    checked: list[int] = []
    distillation, at = trainer.losses.distillation, trainer.Teacher.at

    def watched_term(*args: Any) -> torch.Tensor:
        term = distillation(*args)
        terms.append(term.item())
        return term

    def watched_at(self: trainer.Teacher, step: int, student: Any) -> Any:
        model = at(self, step, student)
        if step == self.from_step + 10:
            stored, loaded = weights(self.path), model.state_dict()
            assert all(torch.equal(loaded[name], stored[name]) for name in stored)
            assert not model.training
            checked.append(step)
        return model

    monkeypatch.setattr(trainer.losses, "distillation", watched_term)
    monkeypatch.setattr(trainer.Teacher, "at", watched_at)
    train(make_run(bundle, protocol, "self_distillation", teacher=teacher), tmp_path / "run")
    assert checked == [10 if teacher == "base" else 13]
    # The student begins as its teacher, then moves away.
    assert abs(terms[0]) < 1e-5
    assert terms[10] > 1e-4


def test_the_snapshot_arm_starts_with_an_epoch_on_known_facts(
    bundle: Bundle, protocol: Protocol, tmp_path: Path
) -> None:
    distilled = make_run(bundle, protocol, "self_distillation", teacher="snapshot")
    data = methods.METHODS["self_distillation"].data(bundle, distilled.settings)
    known = {item.fact.id for item in bundle.splits["known"]}
    assert {fact.id for fact in data.first} == known
    assert distilled.steps() == make_run(bundle, protocol, "sft").steps()


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


def test_known_only_never_sees_unknown_facts(bundle: Bundle, protocol: Protocol) -> None:
    run = make_run(bundle, protocol, "known_only")
    data = methods.METHODS["known_only"].data(bundle, run.settings)
    unknown = {item.fact.id for item in bundle.splits["unknown"]}
    assert not unknown & {fact.id for fact in [*data.first, *data.repeated]}


def test_a_broken_loss_stops_with_its_step(
    bundle: Bundle, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer.losses, "cross_entropy", lambda logits, *rest: logits.sum() * float("nan")
    )
    with pytest.raises(UserError, match="no number any more at step 30"):
        finetune(make_run(bundle, protocol, "sft"), tmp_path / "nan", progress=False)


def test_a_changed_base_is_refused(
    bundle: Bundle, protocol: Protocol, sft: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not those of the base"):
        finetune(
            make_run(bundle, protocol, "sft"), tmp_path / "x", pretrained=str(sft), progress=False
        )
