"""Validates records: checks with severities; every number is recomputed from the outcomes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from factual_forgetting import files
from factual_forgetting.board.form import Record, place, record_id
from factual_forgetting.board.record import (
    SCORED,
    Outcome,
    load_record,
    recompute,
    track_of,
)
from factual_forgetting.bundle.manifest import Bundle, Item
from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.protocol.settings import SETTINGS

Severity = Literal["error", "warning"]
MOST_DISAGREEING = 0.02
FEWEST_SEEDS = 3
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: Its name.
        severity: `error`: the record is refused; `warning`: a person should look.
        path: The file.
        message: What is wrong, in one line.
    """

    check: str
    severity: Severity
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A record that could be read, with the bundle that it names.

    Attributes:
        path: The record's file, below the directory of records.
        record: The record.
        rows: Its outcomes.
        bundle: Its bundle.
        official: Whether that is an official bundle; None where no bundles are official.
    """

    path: Path
    record: Record
    rows: list[Outcome]
    bundle: Bundle
    official: bool | None

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yields the facts that must be answered, with their splits, in order."""
        for split in SCORED:
            for item in self.bundle.splits[split]:
                yield split, item


@dataclass(frozen=True, slots=True)
class Check:
    """A registered check.

    Attributes:
        name: Its name.
        severity: How grave what it finds is.
        run: Yields messages about one record.
    """

    name: str
    severity: Severity
    run: Callable[[Submission], Iterable[str]]


CHECKS: list[Check] = []
Runner = Callable[[Submission], Iterable[str]]


def _check(name: str, severity: Severity) -> Callable[[Runner], Runner]:
    def register(run: Runner) -> Runner:
        CHECKS.append(Check(name, severity, run))
        return run

    return register


@_check("facts", "error")
def _facts(given: Submission) -> Iterator[str]:
    expected = [(item.fact.id, split, item.fact.relation) for split, item in given.items()]
    if [(row["id"], row["split"], row["relation"]) for row in given.rows] != expected:
        yield "the outcomes aren't those of the bundle's facts, each once and in order."


@_check("answers", "error")
def _answers(given: Submission) -> Iterator[str]:
    accepted = {item.fact.id: item.fact.accepted for _, item in given.items()}
    wrong = [
        row["id"]
        for row in given.rows
        if row["answer"] is not None
        and row["id"] in accepted
        and is_correct(row["answer"], accepted[row["id"]]) != row["final"]
    ]
    if wrong:
        yield f"{len(wrong)} outcomes aren't what their answers score ({wrong[0]} for one)."


@_check("id", "error")
def _id(given: Submission) -> Iterator[str]:
    if record_id(_plain(given)) != given.record.id:
        yield f"its id {given.record.id} isn't the hash of what identifies it."
    if given.record.outcomes.file != f"{given.record.id}.outcomes.jsonl.gz":
        yield "its outcomes file isn't named after its id."


@_check("place", "error")
def _place(given: Submission) -> Iterator[str]:
    expected = place(_plain(given))
    if given.path.as_posix() != expected:
        yield f"it belongs in {expected}."


@_check("base", "error")
def _base(given: Submission) -> Iterator[str]:
    base = given.bundle.manifest["base"]
    differing = [
        key for key, value in given.record.base.model_dump().items() if base.get(key) != value
    ]
    if differing:
        yield f"its base isn't the bundle's ({', '.join(differing)})."


@_check("track", "error")
def _track(given: Submission) -> Iterator[str]:
    plain = _plain(given)
    expected = track_of(plain["protocol"], plain["method"])
    if given.record.track != expected:
        yield f"its track is {expected}: closed is a recipe of the package, with one of its trials."


@_check("metrics", "error")
def _metrics(given: Submission) -> Iterator[str]:
    told = given.record.metrics
    metrics = recompute(given.bundle, given.rows, len(given.record.curve))
    for name, value in metrics.items():
        if not _equal(told.get(name), value):
            yield f"{name} is {told.get(name)}, but the outcomes give {value}."
    unknown = sorted(set(told) - set(metrics))
    if unknown:
        yield f"unknown metrics: {', '.join(unknown)}."


@_check("curve", "error")
def _curve(given: Submission) -> Iterator[str]:
    steps = [point.step for point in given.record.curve]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield "the steps of its curve don't rise."
    total = given.record.cost.steps
    # Averages of weights end with the chosen one, a step after the others.
    if total is not None and steps and steps[-1] > total + 1:
        yield f"its curve goes to step {steps[-1]}, but it has {total} steps."
    differing = _disagreeing(given.rows)
    if differing > MOST_DISAGREEING * len(given.rows):
        yield f"{differing} final outcomes differ from the last point of its curve."


def _disagreeing(rows: list[Outcome]) -> int:
    return sum(
        row["curve"][-1] in "01" and (row["curve"][-1] == "1") != row["final"]
        for row in rows
        if row["curve"]
    )


@_check("agreement", "warning")
def _agreement(given: Submission) -> Iterator[str]:
    differing = _disagreeing(given.rows)
    if 0 < differing <= MOST_DISAGREEING * len(given.rows):
        yield f"{differing} final outcomes differ from the last point of its curve."


@_check("official", "warning")
def _official(given: Submission) -> Iterator[str]:
    if given.official is False:
        yield f"its bundle {given.bundle.sha256[:12]} is not the official one of its base."


@_check("level", "warning")
def _level(given: Submission) -> Iterator[str]:
    if given.record.level != "self-reported":
        yield f"it claims the level {given.record.level}, which a maintainer has to confirm."


@_check("seed", "warning")
def _seed(given: Submission) -> Iterator[str]:
    if given.record.seed is None:
        yield "its seed is unknown, so it can't be compared with references of the same seed."


@_check("declared", "warning")
def _declared(given: Submission) -> Iterator[str]:
    if given.record.training_data.heldout == "unknown":
        yield "it doesn't declare whether it was trained on facts of D_Held."
    if given.record.training_data.heldout == "included":
        yield "it was trained on facts of D_Held: it is shown, and not ranked."
    if given.record.track == "open" and given.record.trials is None:
        yield "it is on the open track and doesn't declare how many settings were tried."


@_check("environment", "warning")
def _environment(given: Submission) -> Iterator[str]:
    if given.record.environment.dirty:
        yield "it was made with uncommitted changes of the benchmark."
    if given.record.weights_sha256 is None:
        yield "its weights have no hash, so it can't be scored again."


def _plain(given: Submission) -> dict[str, Any]:
    return given.record.model_dump(mode="json")


def _equal(given: Any, computed: Any) -> bool:
    """Compares to the last digits that differ between versions of numpy."""
    if isinstance(computed, dict):
        same_keys = isinstance(given, dict) and set(given) == set(computed)
        return same_keys and all(_equal(given[key], computed[key]) for key in computed)
    if isinstance(computed, float) and isinstance(given, int | float):
        return math.isclose(given, computed, rel_tol=0, abs_tol=_TOLERANCE)
    return bool(given == computed) and isinstance(given, bool) == isinstance(computed, bool)


def validate(
    root: Path, bundles: Mapping[str, Bundle], official: Iterable[str] | None = None
) -> list[Finding]:
    """Checks every file under a directory of records.

    Args:
        root: Directory of records.
        bundles: Bundles at hand by hash; a record of another can't be recomputed.
        official: Hashes of the official bundles; None if no bundles are official there.

    Returns:
        What was found, ordered by path.
    """
    findings: list[Finding] = []
    submissions = []
    named = None if official is None else set(official)
    for path in sorted(root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        stray = _stray(path)
        if stray is not None:
            findings.append(Finding("files", *stray))
        elif path.suffix == ".json":
            given = _read(path, root, bundles, named)
            if isinstance(given, Submission):
                submissions.append(given)
                findings += _run(given, root)
            else:
                findings.append(given)
    findings += _duplicates(submissions, root)
    findings += _missing_seeds(submissions, root)
    return sorted(findings, key=lambda finding: (finding.path, finding.check, finding.message))


def _stray(path: Path) -> tuple[Severity, str, str] | None:
    """Finds what is neither a record nor its outcomes."""
    name = path.name
    if path.is_symlink():
        return "error", str(path), "it is a link; only plain files are read."
    if name.startswith("."):
        return "warning", str(path), "left by an interrupted write; remove it."
    if name.endswith(".outcomes.jsonl.gz"):
        record = path.with_name(name.removesuffix(".outcomes.jsonl.gz") + ".json")
        return None if record.is_file() else ("warning", str(path), "outcomes without a record.")
    return None if path.suffix == ".json" else ("error", str(path), "it is no file of a record.")


def _read(
    path: Path, root: Path, bundles: Mapping[str, Bundle], official: set[str] | None
) -> Submission | Finding:
    try:
        record, rows = load_record(path)
    except UserError as error:
        return Finding("form", "error", str(path), str(error))
    bundle = bundles.get(record.bundle_sha256)
    if bundle is None:
        told = f"its bundle {record.bundle_sha256[:12]} is not at hand. Give it with --bundle."
        return Finding("bundle", "error", str(path), told)
    known = None if official is None else record.bundle_sha256 in official
    return Submission(path.relative_to(root), record, rows, bundle, known)


def _run(given: Submission, root: Path) -> list[Finding]:
    found = []
    for check in CHECKS:
        messages = list(check.run(given))
        found += [
            Finding(check.name, check.severity, str(root / given.path), message)
            for message in messages
        ]
        if messages and check.name == "facts":
            break  # The other checks need the outcomes of each fact.
    return found


def _duplicates(submissions: list[Submission], root: Path) -> Iterator[Finding]:
    """One checkpoint is one result: the same weights twice would count as two seeds."""
    weights, outcomes = defaultdict(list), defaultdict(list)
    for given in submissions:
        record = given.record
        if record.weights_sha256 is not None:
            weights[record.bundle_sha256, record.weights_sha256, record.level].append(given)
        outcomes[record.bundle_sha256, record.outcomes.sha256].append(given)
    for same, severity, told in (
        (weights, "error", "the same weights as {}."),
        (outcomes, "warning", "the same outcomes as {}, to the last fact."),
    ):
        for first, *others in same.values():
            for other in others:
                message = told.format(first.record.id)
                found: Severity = "error" if severity == "error" else "warning"
                if not _may_be_equal(first.record, other.record):
                    yield Finding("duplicates", found, str(root / other.path), message)


def _may_be_equal(first: Record, second: Record) -> bool:
    """Whether two methods may end in one checkpoint: one of them chooses among trained ones.

    Choosing the last point, or an average that is all trained weights, gives plain training's
    checkpoint of the same seed.
    """
    names = {first.method.name, second.method.name}
    chooses = any(name in SETTINGS and SETTINGS[name].chooses for name in names)
    alike = first.seed == second.seed and first.protocol == second.protocol
    return alike and chooses and len(names) == 2


def _missing_seeds(submissions: list[Submission], root: Path) -> Iterator[Finding]:
    arms = defaultdict(list)
    for given in submissions:
        record = given.record
        key = (record.bundle_sha256, record.method.model_dump_json(), record.protocol)
        arms[files.sha256_json([str(part) for part in key])].append(given)
    for group in arms.values():
        seeds = {given.record.seed for given in group}
        if len(seeds) < FEWEST_SEEDS:
            first = min(group, key=lambda given: given.path)
            told = f"{first.record.method.name} has {len(seeds)} seeds of at least {FEWEST_SEEDS}."
            yield Finding("seeds", "warning", str(root / first.path), told)


def report(findings: list[Finding], style: str, *, color: bool = False) -> str:
    """Renders findings as `rich`, `json`, or `github` annotations.

    Args:
        findings: What was found.
        style: How to show it.
        color: Whether `rich` may use a terminal's colours.
    """
    if style == "json":
        return files.dumps([_row(finding) for finding in findings], indent=2)
    if style == "github":
        return "\n".join(map(_annotation, findings))
    return "\n".join(_line(finding, color) for finding in findings)


def _row(finding: Finding) -> dict[str, str]:
    return {name: getattr(finding, name) for name in Finding.__slots__}


def _line(finding: Finding, color: bool) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(force_terminal=color, color_system="standard" if color else None)
    # Text and not a string: a stranger's brackets are no markup.
    line = Text.assemble(
        (f"{finding.severity:7} ", "bold red" if finding.severity == "error" else "yellow"),
        (f"{finding.check:12} ", "bold"),
        (f"{_visible(finding.path)}: ", "cyan"),
        _visible(finding.message),
    )
    with console.capture() as shown:
        console.print(line, soft_wrap=True, end="")
    return shown.get()


def _visible(text: str) -> str:
    """Keeps a stranger's text from moving the cursor or forging a line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _annotation(finding: Finding) -> str:
    def escape(text: str, *, inside: bool = False) -> str:
        for sign in "%\r\n" + (":," if inside else ""):
            text = text.replace(sign, f"%{ord(sign):02X}")
        return text

    place_told = f"file={escape(finding.path, inside=True)},title={finding.check}"
    return f"::{finding.severity} {place_told}::{escape(finding.message)}"
