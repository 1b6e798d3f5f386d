"""Killed before any change of the disk, or on a full one, a command goes on to the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401 - here, so that no process of the many imports it anew
import pytest
import yaml

from factual_forgetting import files
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.comparison.command import _write
from factual_forgetting.comparison.comparing import compare_models, work_folder
from factual_forgetting.comparison.interview import Opening
from factual_forgetting.comparison.questions import Questions
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.command import ALMANAC_RECIPE
from factual_forgetting.lab.pretrain import PretrainConfig, pretrain_base
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import MethodSettings
from factual_forgetting.protocol.train import finetune
from factual_forgetting.slick.classify import classify
from factual_forgetting.slick.labelling import SlickConfig
from faults import KILLED, attempt, contents, fill, refuse
from small import make_labels
from stage import Stage, models, questions, some_facts
from stub import StubEngine, many_facts
from words import subcommands

Job = Callable[[Path], Any]
FEW = 4  # changes that the fast tier tries, of a command that takes long


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "facts.jsonl"
    files.write_jsonl(path, [fact.row() for fact in many_facts(2, 20)])
    return path


def facts_job(source: Path, output: Path) -> int:
    return command("facts", source, "--output_path", output / "out")


def export_job(bundle: Bundle, output: Path) -> int:
    return command("bundle", "export", bundle.path, "--output_path", output / "train.jsonl")


def build_job(facts: list[Fact], base: Path, output: Path) -> None:
    sizes = BundleConfig(known=24, unknown=24, heldout=16, validation=4, replay=4)
    build_bundle(make_labels(facts, base), sizes, output / "bundle")


def classify_job(output: Path) -> None:
    settings = SlickConfig(runs=3, shots=2, shard_size=40)
    classify(many_facts(2, 60), StubEngine(), settings, {"pretrained": "stub"}, output / "l")


def frontier_job(run: Path, bundle: Bundle, output: Path) -> int:
    image = output / "frontier.svg"
    return command("frontier", run, "--bundle", bundle.path, "--output_path", image)


def record_job(run: Path, bundle: Bundle, output: Path) -> int:
    given = ("--bundle", bundle.path, "--submitter", "me", "--output_path", output / "records")
    return command("record", run, *given)


def board_job(records: Path, bundle: Bundle, output: Path) -> int:
    given = ("--bundle", bundle.path, "--format", "html", "--output_path", output / "page")
    return command("board", records, *given, "--plot", output / "plot.png")


def exports_job(bundle: Bundle, given: Path, output: Path) -> int:
    told = ("--to", "every_eval_ever", "--bundle", bundle.path, "--output_path", output / "out")
    return command("export", given, *told)


def drift_job(base: Path, run: Path, bundle: Bundle, output: Path) -> int:
    given = ("--bundle", bundle.path, "--device", "cpu", "--output_path", output / "drift.png")
    return command("drift", base, run, *given)


def score_job(run: Path, bundle: Bundle, output: Path) -> int:
    given = ("--bundle", bundle.path, "--device", "cpu", "--output_path", output / "results")
    return command("score", "--model_args", f"pretrained={run},dtype=float32", *given)


def interference_job(bundle: Bundle, recipe: Path, output: Path) -> int:
    given = ("--bundle", bundle.path, "--protocol", recipe, "--facts", 8, "--keys", "name")
    short = ("--most_passes", 1, "--plasticity", 0.1, "--output_path", output / "out")
    return command("interference", *given, *short)


def official_job(bundle: Bundle, output: Path) -> int:
    return command("official", bundle.path, "--bundles", output / "bundles")


def pretrain_job(facts: list[Fact], output: Path) -> None:
    recipe = yaml.safe_load(ALMANAC_RECIPE.read_text())
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300}
    small |= {"epochs": 1, "block_size": 64, "batch_size": 8, "threads": 1, "exposures_high": 2}
    small |= {"exposures_low": 1}
    pretrain_base(facts[:30], PretrainConfig(**{**recipe, **small}), output / "base")


def finetune_job(bundle: Bundle, protocol: Protocol, output: Path) -> None:
    short = protocol.model_copy(update={"epochs": 1, "evaluate_every": 3})
    finetune(Run(bundle, short, "sft", MethodSettings(), 0), output / "run", progress=False)


def compare_job(questions: Questions, output: Path) -> None:
    with work_folder(output / "forgotten") as folder:
        found = compare_models(models(0.3), questions, Opening(), folder, quick=False)
        _write(found, folder)


def sweep_job(bundle: Bundle, recipe: Path, output: Path) -> int:
    arms = [{"name": name, "method": name} for name in ("sft", "known_only")]
    told = {"bundle": str(bundle.path), "protocol": str(recipe), "seeds": [0], "arms": arms}
    (recipe.parent / "sweep.yaml").write_text(yaml.safe_dump(told))
    return command("sweep", "run", recipe.parent / "sweep.yaml", "--output_path", output / "out")


def short_recipe(get: Callable[[str], Any]) -> Path:
    path: Path = get("tmp_path") / "given" / "short.yaml"
    short = get("protocol").model_copy(update={"name": "short", "epochs": 1})
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(short.model_dump(mode="json")))
    return path


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Job:
    get = request.getfixturevalue
    if request.param == "facts":
        return partial(facts_job, get("source"))
    if request.param == "export":
        return partial(export_job, get("bundle"))
    if request.param == "build":
        return partial(build_job, get("facts"), get("base"))
    if request.param == "frontier":
        return partial(frontier_job, get("sft"), get("bundle"))
    if request.param == "record":
        return partial(record_job, get("sft"), get("bundle"))
    if request.param == "board":
        records = get("tmp_path") / "given"
        record_job(get("sft"), get("bundle"), records)
        return partial(board_job, records / "records", get("bundle"))
    if request.param == "exports":
        records = get("tmp_path") / "given"
        record_job(get("sft"), get("bundle"), records)
        return partial(exports_job, get("bundle"), records / "records")
    if request.param == "drift":
        return partial(drift_job, get("base"), get("sft"), get("bundle"))
    if request.param == "score":
        return partial(score_job, get("sft"), get("bundle"))
    if request.param == "interference":
        return partial(interference_job, get("bundle"), short_recipe(get))
    if request.param == "official":
        return partial(official_job, get("bundle"))
    if request.param == "pretrain":
        return partial(pretrain_job, get("facts"))
    if request.param == "finetune":
        return partial(finetune_job, get("bundle"), get("protocol"))
    if request.param == "compare":
        Stage(get("monkeypatch"))
        return partial(compare_job, questions(some_facts(60)))
    if request.param == "sweep":
        return partial(sweep_job, get("bundle"), short_recipe(get))
    return classify_job


EVERY = ["facts", "export", "build", "classify", "compare", "frontier", "record", "board", "drift",
         "exports", "pretrain", "finetune", "score", "interference", "official"]  # fmt: skip
LONG = ["sweep"]  # in the slow tier alone
KILLED_AS = {"bundle build": "build", "bundle export": "export", "sweep run": "sweep"}
KILLED_AS |= {"export": "exports"}
NOT_KILLED = {
    **dict.fromkeys(
        ("report", "validate", "diff", "env", "tasks-path", "bundle check", "sweep plan"),
        "writes nothing",
    ),
    "demo": "classify, build, finetune, score, record and board in one",
    "submit": "score and record in one",
    "register": "copies a few files that it copies again",
    "unregister": "removes them",
}


def test_every_command_is_killed_somewhere() -> None:
    """A new one joins EVERY, or says why not."""
    killed = {KILLED_AS.get(name, name) for name, _ in subcommands() if name not in NOT_KILLED}
    assert killed == {*EVERY, *LONG}
    assert {name for name, _ in subcommands()} >= NOT_KILLED.keys()


def whole(job: Job, output: Path) -> tuple[dict[str, bytes], int]:
    """What an undisturbed command writes, and in how many changes."""
    output.mkdir()
    status, count = attempt(partial(job, output), output)
    assert status == 0
    found = contents(output)
    shutil.rmtree(output)
    return found, count


def goes_on(job: Job, output: Path, at: int, expected: dict[str, bytes], **fault: Any) -> int:
    output.mkdir(exist_ok=True)
    status, _ = attempt(partial(job, output), output, at, **fault)
    assert attempt(partial(job, output), output)[0] == 0, f"after change {at}"
    assert contents(output) == expected, f"after change {at}"
    shutil.rmtree(output)
    return status


def some(count: int, most: int) -> list[int]:
    """The changes from the first to the last, or so many of them."""
    step = max(1, -(-count // most))
    return sorted({*range(1, count + 1, step), count})


@pytest.mark.parametrize("job", EVERY, indirect=True)
def test_killed_before_some_changes(job: Job, tmp_path: Path) -> None:
    expected, count = whole(job, tmp_path / "out")
    for at in some(count, FEW):
        assert goes_on(job, tmp_path / "out", at, expected) == KILLED


@pytest.mark.slow
@pytest.mark.parametrize("job", [*EVERY, *LONG], indirect=True)
def test_killed_before_every_change(job: Job, tmp_path: Path) -> None:
    expected, count = whole(job, tmp_path / "out")
    for at in range(1, count + 1):
        assert goes_on(job, tmp_path / "out", at, expected) == KILLED


COMMANDS = ["facts", "export", "exports", "frontier", "record", "board", "drift", "score",
            "interference", "official", "sweep"]  # fmt: skip


@pytest.mark.parametrize("job", COMMANDS, indirect=True)
def test_a_folder_that_may_only_be_read(
    job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, before any work."""
    (tmp_path / "out").mkdir()
    assert attempt(partial(job, tmp_path / "out"), tmp_path / "out", 1, refuse)[0] == 1
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(told) == 1
    assert "Nothing can be written" in told[0]
    assert "Permission denied" in told[0]
    assert not any((tmp_path / "out").iterdir())


DISKS = ["facts", "export", "record", "frontier", "official"]


@pytest.mark.parametrize("job", DISKS, indirect=True)
def test_a_disk_that_fills(job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, status 1, and the next start goes on."""
    expected, count = whole(job, tmp_path / "out")
    for at in range(1, count):
        capfd.readouterr()
        assert goes_on(job, tmp_path / "out", at, expected, act=fill) == 1
        told = [line for line in capfd.readouterr().err.splitlines() if line]
        told = [line for line in told if line.startswith("factual-forgetting:")]
        assert len(told) == 1
        assert "No space" in told[0]
