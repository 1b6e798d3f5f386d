import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import altered, curve, make_run, same, train, weights

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, VALIDATION, Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import trainer
from factual_forgetting.protocol.data import encode
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.sweep import Arm, Sweep, sweep_runs
from small import make_model


@pytest.fixture
def brief(protocol: Protocol, tmp_path: Path) -> Path:
    """Three steps, as a file."""
    short = altered(protocol, name="brief", epochs=1, batch_size=16, max_new_tokens=1)
    files.write_json(tmp_path / "brief.yaml", short.model_dump(mode="json"))
    return tmp_path / "brief.yaml"


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail with one line, and returns the line."""
    capsys.readouterr()
    assert main([str(part) for part in arguments]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("factual-forgetting: ")]
    assert len(lines) == 1
    assert "Traceback" not in said.err
    return lines[0]


@pytest.fixture
def given(bundle: Bundle, brief: Path, tmp_path: Path) -> list[str]:
    """The arguments of a run in `r`, its method apart."""
    paths = {"bundle": bundle.path, "protocol": brief, "output_path": tmp_path / "r"}
    return ["finetune", *(text for k, v in paths.items() for text in (f"--{k}", str(v)))]


def test_a_group_that_the_model_lacks(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    line = told(capsys, *given, "--method", "freeze", "--method_args", "trainable=experts")
    assert "'experts' matches no parameter of this model" in line
    assert "Groups: attention, ffn" in line


def test_a_tokenizer_without_eos(bundle: Bundle, base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = None
    facts = [item.fact for item in bundle.splits["known"]]
    with pytest.raises(UserError, match=r"no EOS token.*Set eos_token"):
        encode(facts, tokenizer, None)


def test_a_fact_longer_than_the_model_takes(bundle: Bundle, tokenizer: Any) -> None:
    facts = [item.fact for item in bundle.splits["known"]]
    longest = max(len(row["input_ids"]) for row in encode(facts, tokenizer, None))
    assert encode(facts, tokenizer, longest)
    with pytest.raises(UserError, match=rf"takes {longest} tokens.*the model takes {longest - 1}"):
        encode(facts, tokenizer, longest - 1)


@pytest.fixture
def other_base(base: Path, tokenizer: Any, tmp_path: Path) -> Path:
    """A model of another shape with the same tokenizer."""
    make_model("gpt2", len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_another_base_is_refused_and_what_differs_is_told(
    capsys: pytest.CaptureFixture[str], given: list[str], other_base: Path, tmp_path: Path
) -> None:
    given += ["--method", "sft", "--model_args", f"pretrained={other_base}"]
    line = told(capsys, *given)
    assert "hidden_size 32 instead of 64" in line
    assert "--allow_foreign_base" in line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--model_args", "dtype=float32"), "takes no dtype in --model_args"),
        (("--model_args", "pretrained={base},dtype=float32"), "takes no dtype in --model_args"),
        (("--model_args", "pretrained={base},revision=main"), "takes no revision in --model_args"),
        (("--allow_foreign_base",), "need the base's place"),
        (("--model_args", "pretrained="), "need the base's place"),
        (("--allow_foreign_base", "--model_args", "revision=main"), "need the base's place"),
    ],
)
def test_what_training_would_ignore_is_refused(
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    base: Path,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    told_of_base = [text.format(base=base) for text in arguments]
    assert expected in told(capsys, *given, "--method", "sft", *told_of_base)


def test_insisting_on_another_base_is_written_into_the_run(
    bundle: Bundle, given: list[str], other_base: Path, tmp_path: Path
) -> None:
    given += ["--method", "sft", "--model_args", f"pretrained={other_base}"]
    assert main([*given, "--allow_foreign_base"]) == 0
    run = files.read_json(tmp_path / "r" / "run.json")
    assert run["foreign_base"]["shape"]["hidden_size"] == 32
    assert run["track"] == "open"
    assert run["base"] == bundle.manifest["base"]


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
    ],
)
def test_a_full_disk_loses_nothing(
    bundle: Bundle,
    protocol: Protocol,
    sft: Path,
    fault: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = trainer.ForgettingTrainer._save_optimizer_and_scheduler

    def fail_late(self: Any, directory: str) -> None:
        if self.state.global_step == 60:
            raise fault
        original(self, directory)

    monkeypatch.setattr(trainer.ForgettingTrainer, "_save_optimizer_and_scheduler", fail_late)
    run = make_run(bundle, protocol, "sft")
    with pytest.raises(UserError, match=r"No space is left on the disk.*run the same command"):
        train(run, tmp_path / "run")
    monkeypatch.undo()
    # The half-written checkpoint of step 60 is there, and isn't taken for whole.
    assert (tmp_path / "run" / "resume" / "checkpoint-60" / "model.safetensors").exists()
    resumed = train(run, tmp_path / "run")
    assert same(resumed, weights(sft)) == set(resumed)


def test_other_faults_keep_their_own_words(
    bundle: Bundle, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(trainer.ForgettingTrainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(RuntimeError, match="something else"):
        train(make_run(bundle, protocol, "sft"), tmp_path / "run")


def without(bundle: Bundle, *names: str) -> Bundle:
    return replace(bundle, splits={**bundle.splits, **{name: [] for name in names}})


@pytest.mark.parametrize("lacking", [VALIDATION, UNKNOWN])
def test_what_nothing_can_be_chosen_by_is_told_before_training(
    bundle: Bundle, protocol: Protocol, lacking: str, tmp_path: Path
) -> None:
    poor = without(bundle, lacking)
    for method in ("early_stop", "wise_ft"):
        with pytest.raises(UserError, match=f"This method needs {lacking} facts"):
            train(make_run(poor, protocol, method), tmp_path / method)
    arms = (Arm(name="plain", method="sft"),)
    sweep = Sweep(bundle="small", protocol="almanac-v1", arms=arms, seeds=(0,))
    with pytest.raises(UserError, match=f"A sweep needs {lacking} facts"):
        sweep_runs(sweep, poor, tmp_path)


def test_a_bundle_without_heldout_facts_trains(
    bundle: Bundle, protocol: Protocol, tmp_path: Path
) -> None:
    short = altered(protocol, epochs=1, max_new_tokens=1)
    train(make_run(without(bundle, HELDOUT), short, "sft"), tmp_path / "run")
    last = curve(tmp_path / "run")[-1]
    assert last["kl_to_base"] is None
    assert last["stability"] is None
    assert last["plasticity"] is not None


def test_a_bundle_without_facts_to_train_on_is_told(
    bundle: Bundle, protocol: Protocol, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no fact to train on"):
        train(make_run(without(bundle, KNOWN, UNKNOWN), protocol, "sft"), tmp_path / "none")
    with pytest.raises(UserError, match="needs known facts"):
        train(make_run(without(bundle, KNOWN), protocol, "known_only"), tmp_path / "known")
