"""Records on disk, read with every bound checked, and what follows from their outcomes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import StringConstraints, TypeAdapter, ValidationError
from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.board import form
from factual_forgetting.board.form import Record
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.errors import InputError, NotFoundError, UserError
from factual_forgetting.protocol import grid
from factual_forgetting.protocol.curve import (
    METRIC_OF_SPLIT,
    share_correct,
)
from factual_forgetting.protocol.recipe import find_recipe
from factual_forgetting.protocol.settings import method_label, resolve
from factual_forgetting.scoring.metrics import curve_metrics, final_metrics
from factual_forgetting.scoring.styles import STYLES, TASK
from factual_forgetting.slick.labelling import NOT_ASKED

# Strangers' files are read whole only up to here; the largest honest ones stay far below.
_MOST_RECORD, _MOST_PACKED, MOST_UNPACKED = 2 * 2**20, 32 * 2**20, 128 * 2**20
_MOST_ANSWER, _MOST_NAME = 1000, 300
_NO_PROTOCOL = "no protocol"  # Whatever its track; one that is named has a hash behind it.
MAINTAINERS = "maintainers.json"  # Beside the directory of records.


class Outcome(Config, strict=True):
    """A line of an outcomes file.

    Attributes:
        id: Id of the fact.
        split: Its split.
        relation: Its relation.
        final: Whether the checkpoint's answer is right.
        curve: One character a point of the curve: `1` right, `0` wrong, `-` not asked.
        answer: What the checkpoint answered; None where only the outcome was kept.
    """

    id: Annotated[str, StringConstraints(max_length=_MOST_NAME)]
    split: Annotated[str, StringConstraints(max_length=_MOST_NAME)]
    relation: Annotated[str, StringConstraints(max_length=_MOST_NAME)]
    final: bool
    curve: str
    answer: str | None


_LOOSE_KEY, _ROWS = re.compile(rb'"[ \t\r\n]'), TypeAdapter(list[Outcome])


def track_of(
    protocol: Mapping[str, Any] | None, method: Mapping[str, Any], trials: int | None
) -> str:
    """Returns `closed` for what a recipe of the package pins, with its trials, else `open`."""
    recipe = find_recipe(protocol["name"], protocol["sha256"]) if protocol else None
    try:
        settings = resolve(method["name"], method["settings"])
    except UserError:
        return "open"
    if recipe is None or (trials or 1) > len(grid.trials(recipe, method["name"])):
        return "open"
    return grid.track(recipe, method["name"], settings, None)


class RecordArm(NamedTuple):
    """What the seeds of an arm share, as it is shown.

    Attributes:
        method: Its name and settings.
        protocol: Name and hash of the recipe.
        submitter: Who answers for it.
        style: Key of `STYLES`: how it was asked.
        trained: Whether it trained on D_train.
    """

    method: str
    protocol: str
    submitter: str
    style: str
    trained: bool

    @property
    def by_protocol(self) -> bool:
        """Whether it trained on D_train and was asked as the protocol asks."""
        return self.trained and self.style == TASK


def arm_of(record: Record) -> RecordArm:
    """Returns the arm of a record."""
    name, settings = record.method.name, record.method.settings
    try:
        label = method_label(name, resolve(name, settings))
    except UserError:
        told = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
        label = f"{name}({told})" if told else name
    protocol = record.protocol
    recipe = f"{protocol.name}@{protocol.sha256[:8]}" if protocol else _NO_PROTOCOL
    return RecordArm(label, recipe, record.submitter, record.style, record.trained)


def recompute(
    bundle: Bundle,
    outcomes: Sequence[Outcome],
    points: int,
    *,
    style: str = TASK,
    trained: bool = True,
) -> dict[str, Any]:
    """Computes all metrics of a record from its outcomes, the bundle, and how it was asked."""
    correct = {outcome.id: outcome.final for outcome in outcomes}
    final = final_metrics(bundle, correct, trained=trained, outcome=STYLES[style].outcome)
    return {**final, **curve_metrics(curve_points(outcomes, points))}


def curve_points(outcomes: Sequence[Outcome], points: int) -> list[dict[str, float | None]]:
    """Computes task learning, plasticity and stability at each point of a curve."""
    shares = {
        METRIC_OF_SPLIT[split]: [
            share_correct("".join(signs))
            for signs in zip(*(one.curve for one in part), strict=True)
        ]
        or [None] * points
        for split, part in by_split(outcomes).items()
    }
    return [{name: found[i] for name, found in shares.items()} for i in range(points)]


def by_split(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Groups the outcomes of D_Known, D_Unk and D_Held, each in order."""
    found: dict[str, list[Outcome]] = {split: [] for split in METRIC_OF_SPLIT}
    for outcome in outcomes:
        found[outcome.split].append(outcome)
    return found


def answered(outcomes: Sequence[Outcome]) -> bool:
    """Whether every fact's answer is there, so that its outcome can be judged again."""
    return all(outcome.answer is not None for outcome in outcomes)


def load_record(path: Path) -> tuple[Record, list[Outcome]]:
    """Reads a record and its outcomes, whoever wrote them: size, form and hash are checked.

    Raises:
        UserError: If either is malformed, too large, no plain file, or not of the other.
    """
    _require_plain(path, _MOST_RECORD)
    plain = files.read_object(path)
    record = parse(Record, plain, str(path))
    beside = path.with_name(record.outcomes.file)
    content = _unpack(beside)
    if hashlib.sha256(content).hexdigest() != record.outcomes.sha256:
        raise InputError(f"{beside} was changed: its hash isn't the one in {path.name}.")
    outcomes = _read_outcomes(content, beside)
    if len(outcomes) != record.outcomes.rows:
        raise InputError(f"{beside} has {len(outcomes)} rows, not {record.outcomes.rows}.")
    for outcome in outcomes:
        if len(outcome.curve) != len(record.curve) or outcome.curve.strip(f"01{NOT_ASKED}"):
            raise InputError(f"{beside}: the curve of {outcome.id} is malformed.")
    if form.form_of(plain) == "record-1" and any(
        outcome.answer is not None for outcome in outcomes
    ):
        record = _scored(record)
    return record, outcomes


def _scored(record: Record) -> Record:
    """A record-1 whose checkpoint was scored: the one batch size that it knew is scoring's."""
    made = record.environment
    sizes = {"training_batch_size": None, "scoring_batch_size": made.training_batch_size}
    return record.model_copy(update={"environment": made.model_copy(update=sizes)})


def _require_plain(path: Path, most: int) -> None:
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path} is no plain file. Record the result again.")
    if path.stat().st_size > most:
        raise InputError(f"{path} is larger than {most // 2**20} MB. Record the result again.")


def _unpack(path: Path) -> bytes:
    """Decompresses up to a bound, so that a bomb costs its bound and no more."""
    _require_plain(path, _MOST_PACKED)
    with files.opened(path) as stream:
        content = stream.read(MOST_UNPACKED + 1)
    if len(content) > MOST_UNPACKED:
        raise InputError(f"{path} unpacks to more than {MOST_UNPACKED // 2**20} MB. It is refused.")
    return content


def _read_outcomes(content: bytes, path: Path) -> list[Outcome]:
    lines = content.splitlines()
    # Boards read thousands of records. With as many keys as fields no key is there twice; any
    # doubt is settled line by line, by the strict reader.
    keys = content.count(b'":')
    if keys == len(lines) * len(Outcome.model_fields) and not _LOOSE_KEY.search(content):
        with suppress(ValidationError):
            outcomes = _ROWS.validate_json(b"[" + b",".join(lines) + b"]")
            if all(len(outcome.answer or "") <= _MOST_ANSWER for outcome in outcomes):
                return outcomes
    return [_outcome(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]


def _outcome(line: bytes, where: str) -> Outcome:
    try:
        outcome = Outcome.model_validate(files.loads(line.decode()))
    except ValidationError:
        known = ", ".join(Outcome.model_fields)
        raise InputError(f"{where}: not an outcome ({known}).") from None
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from None
    if len(outcome.answer or "") > _MOST_ANSWER:
        raise InputError(f"{where}: an answer of more than {_MOST_ANSWER} characters.")
    return outcome


def find_records(root: Path) -> list[Path]:
    """Returns the records under a directory, in a fixed order; raises a UserError for none."""
    found = sorted(p for p in root.rglob("*.json") if re.fullmatch(r"[0-9a-f]{16}", p.stem))
    if not found:
        raise NotFoundError(f"{root} holds no records. Write one with factual-forgetting record.")
    return found


def load_records(root: Path) -> Iterator[tuple[Record, list[Outcome]]]:
    """Yields the records under a directory with their outcomes, with a progress bar.

    Their levels are those that the maintainers' file beside the directory says.
    """
    paths, levels = find_records(root), maintained(root)
    for path in tqdm(paths, desc="read", unit="record", leave=False, delay=2):
        record, outcomes = load_record(path)
        level = levels.get(record.id, record.level)
        yield record.model_copy(update={"level": level}), outcomes


class _Maintained(Config):
    """What maintainers say of records, by id: a level each, and that it may stand beside others."""

    levels: dict[form.RecordId, form.Level]


def maintained(root: Path) -> dict[str, form.Level]:
    """Reads the maintainers' file beside a directory of records; without one nothing is said.

    Raises:
        UserError: If it isn't ids with a level each.
    """
    path = root.parent / MAINTAINERS
    levels = files.read_json(path) if path.is_file() else {}
    return parse(_Maintained, {"levels": levels}, str(path)).levels
