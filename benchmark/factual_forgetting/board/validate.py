"""Validates records: checks with severities; every number is recomputed from the outcomes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from factual_forgetting import files
from factual_forgetting.board.bundles import ReferenceRows, reference_of
from factual_forgetting.board.form import OUTCOMES_SUFFIX, UNSTATED, Record, place, record_id, slug
from factual_forgetting.board.record import (
    MAINTAINERS,
    Outcome,
    answered,
    arm_of,
    by_split,
    load_record,
    maintained,
    recompute,
    track_of,
)
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle
from factual_forgetting.errors import UserError, visible
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHERS
from factual_forgetting.protocol.curve import METRIC_OF_SPLIT, sampled
from factual_forgetting.protocol.recipe import protocol_sha256, require_own_name
from factual_forgetting.protocol.run import optimizer_steps
from factual_forgetting.protocol.settings import SETTINGS
from factual_forgetting.scoring.judging import says
from factual_forgetting.scoring.styles import STYLES, Style
from factual_forgetting.slick.labelling import NOT_ASKED, ZERO_SHOT
from factual_forgetting.terminal import shown

_Severity = Literal["error", "warning"]
# In bf16 single answers move with what is asked beside them.
_MANY_DISAGREEING, _MOST_DISAGREEING = 0.01, 0.02
_FEWEST_SEEDS = 3
_FEWEST_ASKED = 100  # Of D_Known and D_Unk at a point, where there are so many.
_TOLERANCE = 1e-9
_DISAGREEING = "{} final outcomes differ from the last point of its curve."


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
    severity: _Severity
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class _Submission:
    """A record that could be read, with the bundle that it names."""

    path: Path
    place: str  # Where that is below the directory of records.
    record: Record
    plain: dict[str, Any]  # The same as plain data.
    outcomes: list[Outcome]
    bundle: Bundle
    official: bool | None  # Whether the bundle is; None where no bundles are official.

    @property
    def style(self) -> Style:
        """How the checkpoint was asked."""
        return STYLES[self.record.style]


def _facts(given: _Submission) -> Iterator[str]:
    expected = [
        (item.fact.id, split, item.fact.relation)
        for split, item in given.bundle.items()
        if split in METRIC_OF_SPLIT
    ]
    if [(found.id, found.split, found.relation) for found in given.outcomes] != expected:
        yield "the outcomes aren't those of the bundle's facts, each once and in order."


def _answers(given: _Submission) -> Iterator[str]:
    version = given.record.matcher_version
    if version not in MATCHERS:
        yield f"its matcher {version} is none of this package ({', '.join(MATCHERS)})."
        return
    if version != given.bundle.matcher:
        yield f"its answers were matched by {version}, those of the base by {given.bundle.matcher}."
    facts, chat = {item.fact.id: item.fact for _, item in given.bundle.items()}, given.style.chat
    wrong = [
        found.id
        for found in given.outcomes
        if found.answer is not None
        and _right(found.answer, facts[found.id], chat, version) != found.final
    ]
    if wrong:
        yield f"{len(wrong)} outcomes aren't what their answers score ({wrong[0]} for one)."


def _right(answer: str, fact: Fact, chat: bool, matcher: str) -> bool:
    return says(answer, fact.accepted, fact.subject, chat=chat, matcher=matcher)


def _protocol(given: _Submission) -> Iterator[str]:
    told, content = given.record.protocol, given.record.resolved_protocol
    if told is None:
        if content is not None:
            yield "it holds a protocol that it doesn't name."
        return
    try:
        require_own_name(told.name, told.sha256)
    except UserError as error:
        yield str(error)
    if content is None and given.record.submitter != UNSTATED:
        yield "it lacks its protocol, so nobody can make it again."
    if content and (content.name, protocol_sha256(content)) != (told.name, told.sha256):
        yield "the protocol in it isn't the one that it names, by name and hash."


def _id(given: _Submission) -> Iterator[str]:
    if record_id(given.plain) != given.record.id:
        yield f"its id {given.record.id} isn't the hash of what identifies it."
    if given.record.outcomes.file != given.record.id + OUTCOMES_SUFFIX:
        yield "its outcomes file isn't named after its id."


def _place(given: _Submission) -> Iterator[str]:
    if given.place != place(given.plain):
        yield f"it belongs in {place(given.plain)}."


def _base(given: _Submission) -> Iterator[str]:
    base = given.bundle.manifest["base"]
    differing = [key for key, value in given.plain["base"].items() if base.get(key) != value]
    if differing:
        yield f"its base isn't the bundle's ({', '.join(differing)})."


def _track(given: _Submission) -> Iterator[str]:
    expected = track_of(given.plain["protocol"], given.plain["method"], given.record.trials)
    if given.record.track != expected:
        yield (
            f"its track is {expected}: closed is a recipe of the package, with settings that it "
            "pins and no more trials than it has."
        )


def _metrics(given: _Submission) -> Iterator[str]:
    told = given.record.metrics
    record = given.record
    asked: dict[str, Any] = {"style": record.style, "trained": record.trained}
    metrics = recompute(given.bundle, given.outcomes, len(record.curve), **asked)
    for name, value in metrics.items():
        if not _equal(told.get(name), value):
            yield f"{name} is {told.get(name)}, but the outcomes give {value}."
    if unknown := sorted(set(told) - set(metrics)):
        yield f"unknown metrics: {', '.join(unknown)}."


def _equal(given: Any, computed: Any) -> bool:
    """Compares to the last digits that differ between versions of numpy."""
    if isinstance(computed, dict):
        same_keys = isinstance(given, dict) and set(given) == set(computed)
        return same_keys and all(_equal(given[key], computed[key]) for key in computed)
    if isinstance(computed, float) and isinstance(given, int | float):
        return math.isclose(given, computed, rel_tol=0, abs_tol=_TOLERANCE)
    return bool(given == computed) and isinstance(given, bool) == isinstance(computed, bool)


def _curve(given: _Submission) -> Iterator[str]:
    steps = [point.step for point in given.record.curve]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield "the steps of its curve don't rise."
    total = given.record.cost.steps
    # Averages of weights end with the chosen one, a step after the others.
    if total is not None and steps and steps[-1] > total + 1:
        yield f"its curve goes to step {steps[-1]}, but it has {total} steps."
    protocol, chooses = given.record.resolved_protocol, _chooses(given.record)
    if protocol and not chooses and steps != _due(steps, protocol.evaluate_every):
        yield f"its curve isn't evaluated every {protocol.evaluate_every} steps."
    if steps and (len(steps) == 1 or steps[0] != 0):
        yield "its curve doesn't go from the base, at step 0, to a point after training."
    differing = _disagreeing(given.outcomes)
    if differing > _MOST_DISAGREEING * len(given.outcomes):
        yield _DISAGREEING.format(differing)


def _style(given: _Submission) -> Iterator[str]:
    """A curve is of training on D_train, in the prompt that is trained."""
    record = given.record
    if record.curve and not arm_of(record).by_protocol:
        yield "it has a curve, which is of a training on D_train, asked as the protocol asks."
    if record.protocol and not record.trained:
        yield "it names a protocol, and never trained on D_train."


def _start(given: _Submission) -> Iterator[str]:
    """A curve begins with the base, whose outcomes the bundle knows."""
    first = [found for found in given.outcomes if found.curve[:1] not in ("", NOT_ASKED)]
    base = {item.fact.id: item.base[ZERO_SHOT] for _, item in given.bundle.items()}
    differing = sum((found.curve[0] == "1") != base[found.id] for found in first)
    if differing > _MOST_DISAGREEING * len(first):
        yield f"{differing} of {len(first)} outcomes at its first point aren't the base's."


def _steps(given: _Submission) -> Iterator[str]:
    """A recipe says how many steps a bundle is trained for; all methods take as many."""
    protocol, cost = given.record.resolved_protocol, given.record.cost
    if cost.tokens is not None and cost.steps is not None and cost.tokens < cost.steps:
        yield f"it read {cost.tokens} tokens in {cost.steps} steps."
    if protocol is None:
        return
    total = optimizer_steps(given.bundle, protocol)
    if cost.steps != total:
        yield f"its protocol trains this bundle for {total} steps, and it tells {cost.steps}."
    last = given.record.curve[-1].step if given.record.curve else total
    if last != total and not _chooses(given.record):
        yield f"its curve ends at step {last}, and training at {total}."


def _due(steps: list[int], every: int) -> list[int]:
    """The steps that a curve of a protocol has up to the last, which stands where training ends."""
    return [*islice(range(0, steps[-1], every), len(steps) + 1), steps[-1]] if steps else []


def _chooses(record: Record) -> bool:
    """Whether its method ends at a point of its choice, as it says where it averages weights."""
    return record.method.name in SETTINGS and SETTINGS[record.method.name].chooses


def _asked(given: _Submission) -> Iterator[str]:
    """A fact that isn't asked where it would be wrong raises every share."""
    parts = by_split(given.outcomes)
    if any(NOT_ASKED in one.curve for one in parts[HELDOUT]):
        yield "facts of D_Held are unasked on its curve; all have to be asked at every point."
    for split in (KNOWN, UNKNOWN):
        if told := _wrong_sample(parts[split], given.record):
            yield f"{told} of {split} facts."


def _wrong_sample(part: list[Outcome], record: Record) -> str | None:
    """Tells what is wrong with the facts of a split that are asked; None if nothing is."""
    if any(one.curve[-1:] == NOT_ASKED for one in part):
        return "the last point of its curve doesn't ask all"
    asked = [{o.id for o in part if o.curve[i] != NOT_ASKED} for i in range(len(record.curve) - 1)]
    if not asked:
        return None
    protocol = record.resolved_protocol
    told = protocol.evaluate_sample if protocol else len(asked[0])
    if len(asked[0]) < min(len(part), _FEWEST_ASKED):
        return f"its curve asks {len(asked[0])}, fewer than {_FEWEST_ASKED},"
    expected = set(sampled((one.id for one in part), told))
    return None if all(one == expected for one in asked) else "its curve asks another sample"


def _agreement(given: _Submission) -> Iterator[str]:
    differing = _disagreeing(given.outcomes)
    if _MANY_DISAGREEING < differing / len(given.outcomes) <= _MOST_DISAGREEING:
        yield _DISAGREEING.format(differing)


def _disagreeing(outcomes: list[Outcome]) -> int:
    return sum(found.curve[-1:] == ("0" if found.final else "1") for found in outcomes)


def _official(given: _Submission) -> Iterator[str]:
    if given.official is False:
        yield f"its bundle {given.bundle.sha256[:12]} is not the official one of its base."


def _before(given: _Submission) -> Iterator[str]:
    if given.record.submitter == UNSTATED:
        yield "it is of a form before, which says neither its submitter nor its protocol."


def _answered(given: _Submission) -> Iterator[str]:
    if not answered(given.outcomes):
        yield "it lacks answers of the checkpoint, so it is shown and not ranked. Score it."


def _origin(given: _Submission) -> Iterator[str]:
    origin = given.record.origin
    if origin.descent == "declared":
        yield "that it descends from the base was declared, not checked."
    if origin.tokenizer_sha256 and origin.base_tokenizer_sha256 not in (
        None,
        origin.tokenizer_sha256,
    ):
        yield "its tokenizer isn't the base's: the same questions reached it as other tokens."


def _seed(given: _Submission) -> Iterator[str]:
    if given.record.seed is None and given.record.trained:
        yield "its seed is unknown, so it can't be compared with references of the same seed."


def _declared(given: _Submission) -> Iterator[str]:
    if given.record.training_data.heldout == "unknown":
        yield "it doesn't declare whether it was trained on facts of D_Held."
    if given.record.training_data.heldout == "included":
        yield "it was trained on facts of D_Held: it is shown, and not ranked."
    if given.record.trials is None and given.record.trained:
        yield "it doesn't declare how many settings were tried."


def _environment(given: _Submission) -> Iterator[str]:
    if given.record.environment.dirty:
        yield "it was made with uncommitted changes of the benchmark."
    if given.record.weights_sha256 is None:
        yield "its weights have no hash, so it can't be scored again."


_ERRORS = (
    _facts, _answers, _id, _place, _base, _protocol, _track, _metrics, _curve, _style, _start,
    _steps, _asked,
)  # fmt: skip
_WARNINGS = (
    _agreement, _before, _answered, _origin, _official, _seed, _declared, _environment,
)  # fmt: skip
# What yields messages about one record, by name.
CHECKS: dict[str, tuple[_Severity, Callable[[_Submission], Iterable[str]]]] = {
    **{check.__name__[1:]: ("error", check) for check in _ERRORS},
    **{check.__name__[1:]: ("warning", check) for check in _WARNINGS},
}


def validate(
    root: Path, bundles: Mapping[str, Bundle], official: Collection[str] | None = None
) -> list[Finding]:
    """Checks every file under a directory of records; what is found is ordered by path.

    Args:
        root: Directory of records.
        bundles: Bundles at hand by hash; a record of another can't be recomputed.
        official: Hashes of the official bundles; None if no bundles are official there.
    """
    findings: list[Finding] = []
    submissions = []
    for path in sorted(root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if stray := _stray(path):
            findings.append(Finding("files", stray[0], str(path), stray[1]))
        elif path.suffix == ".json":
            given = _read(path, root, bundles, official)
            if isinstance(given, _Submission):
                submissions.append(given)
                findings += _run(given)
            else:
                findings.append(given)
    try:
        named = maintained(root)
    except UserError as error:
        findings.append(Finding("maintainers", "error", str(root.parent / MAINTAINERS), str(error)))
        named = {}
    findings += _duplicates(submissions, named)
    findings += [*_occupied(submissions, named), *_missing_seeds(submissions)]
    return sorted(findings, key=lambda finding: (finding.path, finding.check, finding.message))


def check_references(
    named: Mapping[str, ReferenceRows], bundles: Mapping[str, Bundle]
) -> Iterator[Finding]:
    """Computes the reference rows of official bundles again."""
    for sha256 in named.keys() & bundles.keys():
        told, name = named[sha256].model_dump(mode="json"), str(named[sha256].name)
        base = slug(bundles[sha256].manifest["base"]["pretrained"] or "base")
        computed = reference_of(bundles[sha256], name).model_dump(mode="json")
        if not name.startswith(f"{base}/") or not _equal(told, computed):
            message = (
                "its reference rows or name aren't those of its facts. Make it official again."
            )
            yield Finding("reference", "error", name, message)


def _stray(path: Path) -> tuple[_Severity, str] | None:
    """Finds what is neither a record nor its outcomes."""
    if path.is_symlink():
        return "error", "it is a link; only plain files are read."
    if path.name.startswith("."):
        return "warning", "left by an interrupted write; remove it."
    if path.name.endswith(OUTCOMES_SUFFIX):
        record = path.with_name(path.name.removesuffix(OUTCOMES_SUFFIX) + ".json")
        return None if record.is_file() else ("warning", "outcomes without a record.")
    return None if path.suffix == ".json" else ("error", "it is no file of a record.")


def _read(
    path: Path, root: Path, bundles: Mapping[str, Bundle], official: Collection[str] | None
) -> _Submission | Finding:
    try:
        record, outcomes = load_record(path)
    except UserError as error:
        return Finding("form", "error", str(path), str(error))
    sha256 = record.bundle_sha256
    if sha256 not in bundles:
        told = f"its bundle {sha256[:12]} is not at hand. Give it with --bundle."
        return Finding("bundle", "error", str(path), told)
    where, plain = path.relative_to(root).as_posix(), record.model_dump(mode="json")
    known = None if official is None else sha256 in official
    return _Submission(path, where, record, plain, outcomes, bundles[sha256], known)


def _run(given: _Submission) -> list[Finding]:
    found: list[Finding] = []
    for name, (severity, run) in CHECKS.items():
        found += [Finding(name, severity, str(given.path), message) for message in run(given)]
        if found and name == "facts":
            break  # The other checks need the outcomes of each fact.
    return found


def _occupied(submissions: list[_Submission], named: Collection[str]) -> Iterator[Finding]:
    """A seed of an arm is one run: another record of it would displace the first."""
    taken: dict[Hashable, list[_Submission]] = defaultdict(list)
    for given in submissions:
        record = given.record
        if record.seed is not None and record.id not in named:
            taken[record.bundle_sha256, arm_of(record), record.seed].append(given)
    for first, *others in taken.values():
        for other in others:
            told = f"seed {other.record.seed} of its arm is recorded in {first.record.id} already."
            yield Finding("occupied", "error", str(other.path), told)


def _duplicates(submissions: list[_Submission], named: Collection[str]) -> Iterator[Finding]:
    """One checkpoint is one result: the same weights twice would count as two seeds.

    What maintainers named may be a reproduction, down to the bytes.
    """
    groups: dict[tuple[_Severity, str, Hashable], list[_Submission]] = defaultdict(list)
    for given in submissions:
        record = given.record
        same: Hashable = (record.bundle_sha256, record.style, record.outcomes.sha256)
        groups["warning", "the same outcomes as {}, to the last fact.", same].append(given)
        if record.weights_sha256 is not None:
            same = (record.bundle_sha256, record.style, record.weights_sha256)
            groups["error", "the same weights as {}.", same].append(given)
    for (severity, told, _), (first, *others) in groups.items():
        for other in others:
            pair = {first.record.id, other.record.id}
            if pair.isdisjoint(named) and not _may_be_equal(first.record, other.record):
                message = told.format(first.record.id)
                yield Finding("duplicates", severity, str(other.path), message)


def _may_be_equal(first: Record, second: Record) -> bool:
    """Whether two methods may end in one checkpoint: one of them chooses among trained ones.

    Its last point, or an average of all trained weights, is plain training's with the same seed.
    """
    names = {first.method.name, second.method.name}
    chooses = any(name in SETTINGS and SETTINGS[name].chooses for name in names)
    alike = first.seed == second.seed and first.protocol == second.protocol
    return alike and chooses and len(names) == 2


def _missing_seeds(submissions: list[_Submission]) -> Iterator[Finding]:
    arms: dict[Hashable, list[_Submission]] = defaultdict(list)
    for given in submissions:
        if given.record.trained:  # Others are one checkpoint each.
            arms[given.record.bundle_sha256, arm_of(given.record)].append(given)
    for first, *others in arms.values():
        seeds = {given.record.seed for given in (first, *others)}
        if len(seeds) < _FEWEST_SEEDS:
            told = f"{first.record.method.name} has {len(seeds)} seeds of at least {_FEWEST_SEEDS}."
            yield Finding("seeds", "warning", str(first.path), told)


def render_findings(findings: list[Finding], style: str, *, color: bool = False) -> str:
    """Renders findings as `rich`, in colour if asked, `json`, or `github` annotations."""
    if style == "json":
        return shown(files.dumps(list(map(asdict, findings)), indent=2))
    if style == "github":
        return "\n".join(map(_annotation, findings))
    console = Console(force_terminal=color, color_system="standard" if color else None)
    with console.capture() as captured:
        for finding in findings:
            console.print(_line(finding), soft_wrap=True)
    return captured.get().removesuffix("\n")


def _line(finding: Finding) -> Text:
    # Text and not a string: a stranger's brackets are no markup.
    return Text.assemble(
        (f"{finding.severity:7} ", "bold red" if finding.severity == "error" else "yellow"),
        (f"{finding.check:12} ", "bold"),
        (f"{visible(finding.path)}: ", "cyan"),
        visible(finding.message),
    )


def _annotation(finding: Finding) -> str:
    def escape(text: str, *, inside: bool = False) -> str:
        for sign in "%\r\n" + (":," if inside else ""):
            text = text.replace(sign, f"%{ord(sign):02X}")
        return visible(text)

    place_told = f"file={escape(finding.path, inside=True)},title={finding.check}"
    return f"::{finding.severity} {place_told}::{escape(finding.message)}"
