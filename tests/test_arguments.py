"""Every number and every place that a command takes: refused in one line, or known to be legal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from factual_forgetting.board import command as board
from factual_forgetting.bundle import command as bundle_command
from factual_forgetting.cli import main
from factual_forgetting.config import parse_batch_size, parse_count, parse_seed, parse_share
from factual_forgetting.facts import command as facts
from factual_forgetting.mechanism import drift_command, interference
from factual_forgetting.protocol import sweep, train
from factual_forgetting.scoring import command as scoring
from words import subcommands

VALUES = ("-1", "0", "1" + "0" * 30, "nan", "inf", "1e400", "many")
HUGE = VALUES[2]
# What a command needs beside the option that is tried, and would find.
GIVEN: dict[str, tuple[str, ...]] = {
    "demo": (),
    "pretrain": ("--output_path=out",),
    "compare": ("almanac", "almanac"),
    "drift": ("almanac", "almanac"),
    "interference": (),
    "facts": ("almanac",),
    "classify": ("--output_path=out",),
    "bundle build": ("labels", "--output_path=out"),
    "bundle check": ("almanac",),
    "bundle export": ("almanac", "--output_path=out.jsonl"),
    "finetune": ("--bundle=almanac", "--method=sft", "--output_path=out"),
    "sweep plan": ("sweep.yaml", "--output_path=out"),
    "sweep run": ("sweep.yaml", "--output_path=out"),
    "score": ("--model_args=almanac", "--output_path=out"),
    "report": ("no-results",),
    "frontier": ("no-run",),
    "record": ("no-run", "--submitter=me"),
    "submit": ("almanac", "--submitter=me", "--output_path=out"),
    "validate": ("no-records",),
    "board": ("no-records",),
    "export": ("no-records", "--to=every_eval_ever", "--output_path=out"),
    "diff": ("no-records", "no-records"),
    "official": (),
}
PLACES = {"base", "checkpoints", "reference", "bundle", "facts", "checkpoint", "device"}
# Options whose numbers stand in a text.
WORDED = {
    ("compare", "--batch_size"): "{}",
    ("compare", "--fail_if"): "lost>{}",
    ("classify", "--quota"): "known={}",
    ("drift", "--layers"): "{}",
}
# Values that mean something: by option, wherever it is.
LEGAL = {
    "--seed": {"0"},
    "--seeds": {"0"},
    "--exemplar_seed": {"0"},
    "--min_highly_known": {"0"},
    "--samples": {"0"},
    "--temperature": {HUGE},
    "--ray": {"0"},
    "--trials": {"0"},
    "--check_redraw": {"0"},
    "--quota": {"0"},
    "--validation": {"0"},
    "--replay": {"0"},
    "--fail_if": {"0"},
    "--layers": {"0"},
}


class BegunError(Exception):
    """The work would begin: the arguments were taken."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ends every command where its work begins, before any model."""

    def begin(*given: Any, **named: Any) -> None:
        raise BegunError

    for module, name in (
        (facts, "clean_source"), (bundle_command, "load_labels"), (drift_command, "_measure_all"),
        (interference, "run_condition"), (train, "finetune"), (sweep, "run_all"),
        (sweep, "plan_sweep"), (scoring, "run_lm_eval"), (board, "make_record"),
        (board, "write_published"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, begin)
    monkeypatch.setattr("factual_forgetting.lab.demo.run_demo", begin)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    told = {"bundle": "almanac", "protocol": "almanac-v1", "seeds": [0]}
    told["arms"] = [{"name": "sft", "method": "sft"}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(told))
    (tmp_path / "file").write_text("mine")


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """Returns the one line that a command was refused with; None where it would begin, or did."""
    capsys.readouterr()
    try:
        status: Any = main(words)
    except BegunError:
        return None
    except SystemExit as end:
        status = end.code
    if status == 0:
        return None
    told = capsys.readouterr().err
    assert status in {1, 2}, told
    assert "Traceback" not in told
    (line,) = [one for one in told.splitlines() if one.startswith("factual-forgetting")]
    return line


def numeric() -> Iterator[tuple[str, str, str]]:
    """Yields each command and option that takes a number, and how its value is spelt."""
    named = {int, float, parse_seed, parse_count, parse_share, parse_batch_size}
    for name, parser in subcommands():
        for action in parser._actions:
            kind, own = action.type, getattr(action.type, "__module__", "")
            number = kind in named or (callable(kind) and own.startswith("factual_forgetting"))
            option = action.option_strings[-1] if action.option_strings else ""
            if option and number and option != "--column":
                yield name, option, "{}"
    yield from ((name, option, spelt) for (name, option), spelt in WORDED.items())


@pytest.mark.parametrize(("name", "option", "spelt"), numeric())
def test_numbers(name: str, option: str, spelt: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken = set()
    for value in VALUES:
        line = outcome([*name.split(), *GIVEN[name], f"{option}={spelt.format(value)}"], capsys)
        if line is None:
            taken.add(value)
        else:  # about this option, and no other fault
            assert option[2:] in line or value in line, line
    assert taken == LEGAL.get(option, set())


def places() -> Iterator[tuple[str, argparse.Action]]:
    for name, parser in subcommands():
        for action in parser._actions:
            if action.type is Path or (action.dest in PLACES and not action.type):
                yield name, action


def test_every_command_with_options_is_given() -> None:
    assert {name for name, _ in [*places(), *((n, o) for n, o, _ in numeric())]} == {*GIVEN}


ODD = ("file", "/dev/null", "/proc/x", "n" * 300, "~", "~nobody-of-that-name", "\udcff", "")


@pytest.mark.parametrize(("name", "action"), places(), ids=lambda of: getattr(of, "dest", of))
@pytest.mark.parametrize("place", ODD, ids=[ascii(odd)[:20] for odd in ODD])
def test_places(
    name: str, action: argparse.Action, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*name.split(), *GIVEN[name]]
    if action.option_strings:
        words.append(f"{action.option_strings[0]}={place}")
    else:  # instead of what is given in its place
        at = positions(name).index(action.dest) + len(name.split())
        words[at : at + 1] = [place]
    line = outcome(words, capsys)
    if line:
        line.encode()  # as a terminal has to
    assert Path("/dev/null").is_char_device()
    assert Path("file").read_text() == "mine"


def positions(name: str) -> list[str]:
    (parser,) = [of for one, of in subcommands() if one == name]
    return [action.dest for action in parser._actions if not action.option_strings]
