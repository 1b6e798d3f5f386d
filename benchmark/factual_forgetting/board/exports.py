"""What other places are told of a record: its numbers, under what name, and of which facts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from factual_forgetting import files
from factual_forgetting.board.board import make_board
from factual_forgetting.board.bundles import fetch_official, official, sources
from factual_forgetting.board.form import Record, slug
from factual_forgetting.board.record import Outcome, arm_of, load_record, maintained, recompute
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle
from factual_forgetting.errors import InputError

_DATASET = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
_TAKEN = ("data", "unknown")  # Folders that every_eval_ever has for other things.
_WILSON, _TANGO = "score interval, stratified by relation", "paired score interval, stratified"
_RESAMPLED = "facts resampled within their relation"
_AT_P90 = "stability_at_p90"


class Measure(NamedTuple):
    """What a number of a record is.

    Attributes:
        title: Its name.
        told: What it is, in a sentence.
        split: The facts that it is of.
        lowest: The least that it can be; the most is 1.
        falls: Whether less is better.
        interval: How its interval was made.
    """

    title: str
    told: str
    split: str
    lowest: float = 0.0
    falls: bool = False
    interval: str = _WILSON


MEASURES = {
    "task_learning": Measure("Task learning (T)", "Share right of trained known facts.", KNOWN),
    "plasticity": Measure("Plasticity (P)", "Share right of trained new facts.", UNKNOWN),
    "stability": Measure(
        "Stability (S)",
        "Share right of facts that the base knows and nobody trained on.",
        HELDOUT,
    ),
    _AT_P90: Measure(
        "S@P90",
        "Stability when plasticity first reaches .90 in training.",
        HELDOUT,
        interval=_RESAMPLED,
    ),
    "lost": Measure(
        "Lost", "Share now wrong of what the base gets right in the same prompt.", HELDOUT,
        falls=True,
    ),
    "gained": Measure(
        "Gained", "Share now right of what the base gets wrong in the same prompt.", HELDOUT
    ),
    "forgetting_from_base": Measure(
        "Forgetting", "Stability of the base in the same prompt minus that of the checkpoint.",
        HELDOUT, lowest=-1.0, falls=True, interval=_TANGO,
    ),
}  # fmt: skip


class Reported(NamedTuple):
    """A number of a record with the ends of its 95 % interval, over n facts."""

    name: str
    value: float
    low: float
    high: float
    n: int

    @property
    def measure(self) -> Measure:
        """What it is."""
        return MEASURES[self.name]


@dataclass(frozen=True)
class Exported:
    """A record with all that another place is told of it.

    Attributes:
        record: The record.
        outcomes: Its outcomes.
        bundle: Its bundle.
        title: Name of an official bundle, else base and hash.
        dataset: `owner/dataset@commit` where the bundle's facts are on the Hub; None elsewhere.
    """

    record: Record
    outcomes: Sequence[Outcome]
    bundle: Bundle
    title: str
    dataset: str | None

    @property
    def model(self) -> str:
        """`owner/name`: where the weights are, or a name that the record makes."""
        record = self.record
        made = f"{slug(record.base.pretrained or 'base')}-{slug(record.method.name)}-{record.id}"
        return record.repository or f"{record.submitter}/{made}"

    @property
    def method(self) -> str:
        """Its method and settings, as the board shows them, and its seed if it has one."""
        label, seed = arm_of(self.record).method, self.record.seed
        return label if seed is None else f"{label}, seed {seed}"

    @cached_property
    def scores(self) -> list[Reported]:
        """Its numbers, computed from its outcomes; what is null is left out."""
        record, outcomes = self.record, list(self.outcomes)
        asked: Any = {"style": record.style, "trained": record.trained}
        found = recompute(self.bundle, outcomes, len(record.curve), **asked)
        held = len(self.bundle.splits[HELDOUT])
        found[_AT_P90] = None
        if len(record.curve) > 1:
            (shown,) = make_board([(record, outcomes)])["bundles"]
            crossing = shown["rows"][0][_AT_P90]
            found[_AT_P90] = crossing and {**crossing, "n": held}
        told = {name: found[name] for name in MEASURES if found[name] is not None}
        return [
            Reported(name, *(row[key] for key in ("value", "low", "high", "n")))
            for name, row in told.items()
        ]


class Home:
    """What is known of records beside them: their levels, and where the facts of bundles are."""

    def __init__(self, at_hand: Mapping[str, Bundle], places: Mapping[str, str]) -> None:
        """Begins with some bundles by hash, and the names by which they were given."""
        self._bundles, self._places = dict(at_hand), dict(places)

    def read(self, path: Path) -> Exported:
        """Reads a record.

        Raises:
            UserError: If it is malformed, its bundle out of reach, or its name no folder's.
        """
        record, outcomes = load_record(path)
        root = path.absolute().parents[3]  # As `form.place` has it.
        level = maintained(root).get(record.id, record.level)
        record = record.model_copy(update={"level": level})
        sha256, beside = record.bundle_sha256, root.parent / "bundles"
        named = official(beside) if beside.is_dir() else {}
        if sha256 not in self._bundles and sha256 in named:
            self._bundles |= fetch_official(beside, named.keys() - {sha256})
        if sha256 not in self._bundles:
            raise InputError(f"{path} is of the bundle {sha256[:12]}. Give it with --bundle.")
        name = named[sha256].name if sha256 in named else None
        places = [self._places.get(sha256, ""), sources(beside)[sha256] if name else ""]
        found = Exported(
            record,
            outcomes,
            self._bundles[sha256],
            name or f"{record.base.pretrained} {sha256[:12]}",
            next((place for place in places if _DATASET.fullmatch(place)), None),
        )
        require_name(found.model)
        return found


def require_name(model: str) -> None:
    """Refuses an `owner/name` that is no plain folder everywhere.

    Raises:
        UserError: If it is one that a file system reserves, or leads elsewhere.
    """
    if any(files.portable(p) != p or p.lower() in _TAKEN for p in model.split("/")):
        raise InputError(
            f"{model} can't be the name of a folder everywhere. Record the result again with "
            "another --repository or --submitter."
        )


def texts(told: Mapping[str, Any]) -> dict[str, str]:
    """Returns what is known as texts: a null is left out, what isn't text is JSON."""
    return {
        key: value if isinstance(value, str) else files.dumps(value)
        for key, value in told.items()
        if value is not None
    }
