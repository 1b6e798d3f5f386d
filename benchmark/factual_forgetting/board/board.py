"""The board: a pure function of the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from factual_forgetting import files
from factual_forgetting.board.bundles import Reference
from factual_forgetting.board.comparison import (
    Crossing,
    Floats,
    Matrix,
    Split,
    find_crossing,
    ranks,
    resample_counts,
    split_of,
)
from factual_forgetting.board.form import LEVELS, Record
from factual_forgetting.board.record import Outcome
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN
from factual_forgetting.errors import UserError
from factual_forgetting.protocol.curve import METRIC_OF_SPLIT
from factual_forgetting.protocol.settings import describe, resolve
from factual_forgetting.scoring.metrics import COARSE_BELOW
from factual_forgetting.scoring.statistics import Estimate, proportion

Entry = tuple[Record, list[Outcome]]
KNOWN_ONLY, SFT = "known_only", "sft"
LEARNED_TASK = 0.95
LEARNS, KEEPS = "learns", "keeps"


def make_board(
    entries: Iterable[Entry], references: Mapping[str, Reference] | None = None
) -> dict[str, Any]:
    """Groups records by bundle, ranks methods over seeds, and compares with the references.

    Args:
        entries: Records with their outcomes, in any order; the same record twice counts once.
        references: What is known of bundles beside their records, by hash.

    Returns:
        `bundles`: for each bundle its hash, base, reference and `rows`, one for each method and
        protocol; `tables` names the rows of *learns* (by S@P90) and *keeps* (by final S, for
        those who need not learn) in order. Ranks are of the whole table and stand in the rows.

    Raises:
        UserError: If records of a bundle have other facts than the rest.
    """
    bundles: dict[str, _Bundle] = {}
    # One record at a time: the outcomes of thousands don't fit into memory.
    for record, rows in entries:
        if record.bundle_sha256 not in bundles:
            bundles[record.bundle_sha256] = _Bundle(_facts_of(rows), record)
        bundles[record.bundle_sha256].add(record, rows)
    known = references or {}
    return {
        "format": "board-1",
        "records": sum(len(bundle.seeds) for bundle in bundles.values()),
        "bundles": [
            _bundle(sha256, bundle, known.get(sha256)) for sha256, bundle in sorted(bundles.items())
        ],
    }


Layout = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class _Facts:
    """The facts of a bundle as its records have them, and their resamples.

    Attributes:
        layout: Id, split and relation of each fact, in order.
        relations: Relation of each fact by split.
        counts: Resamples of D_Unk and D_Held.
    """

    layout: Layout
    relations: dict[str, list[str]]
    counts: dict[str, Matrix]


@dataclass(frozen=True, slots=True)
class _Seed:
    """One run of an arm.

    Attributes:
        record: Its record.
        final: Final outcome of each fact by split, as floats.
        curve: Share right at each point of the curve, by metric; by step.
        crossing: S@P90 of its curve; None without a curve.
    """

    record: Record
    final: dict[str, Floats]
    curve: dict[int, dict[str, float | None]]
    crossing: Crossing | None


@dataclass(frozen=True, slots=True)
class _Bundle:
    """The records of a bundle, each reduced to what the board needs.

    Attributes:
        facts: The bundle's facts.
        first: The record that they were read from.
        seeds: Runs by the id of their record.
    """

    facts: _Facts
    first: Record
    seeds: dict[str, _Seed] = field(default_factory=dict)

    def add(self, record: Record, rows: list[Outcome]) -> None:
        if record.id in self.seeds:
            return
        if _layout(rows) != self.facts.layout:
            raise UserError(
                f"The record {record.id} has other facts than {self.first.id} of the same "
                "bundle. Find the wrong one with factual-forgetting validate."
            )
        self.seeds[record.id] = _seed(record, rows, self.facts)


@dataclass(frozen=True, slots=True)
class _Arm:
    """The seeds of a method under a protocol."""

    method: str
    protocol: str
    seeds: list[_Seed]

    @property
    def identifier(self) -> str:
        return files.sha256_json([self.method, self.protocol])[:12]

    def by_seed(self) -> dict[int, _Seed]:
        return {one.record.seed: one for one in self.seeds if one.record.seed is not None}

    def stability_at_p90(self) -> Floats | None:
        """S@P90, mean of the seeds, first the estimate, then its resamples; None if never."""
        found = [one.crossing.stability for one in self.seeds if one.crossing]
        if len(found) < len(self.seeds) or any(np.isnan(values[0]) for values in found):
            return None
        return np.asarray(np.mean(found, axis=0))

    def mean(self, split: str) -> Floats:
        """Final outcomes, seeds averaged per fact."""
        return np.asarray(np.mean([one.final[split] for one in self.seeds], axis=0))


def _bundle(sha256: str, bundle: _Bundle, reference: Reference | None) -> dict[str, Any]:
    groups: dict[tuple[str, str], list[_Seed]] = defaultdict(list)
    for one in bundle.seeds.values():
        groups[arm_of(one.record)].append(one)
    arms = {key: _Arm(*key, _shown(group)) for key, group in sorted(groups.items())}
    facts = bundle.facts
    rows = [_row(arm, arms, facts) for arm in arms.values()]
    _rank(list(arms.values()), rows, facts)
    return {
        "sha256": sha256,
        "base": bundle.first.base.pretrained,
        "reference": reference.model_dump(mode="json") if reference else None,
        "counts": {split: len(found) for split, found in facts.relations.items()},
        "rows": sorted(rows, key=_order(LEARNS)),
        "tables": {
            table: [row["id"] for row in sorted(rows, key=_order(table))]
            for table in (LEARNS, KEEPS)
        },
    }


def _layout(rows: list[Outcome]) -> Layout:
    return tuple((row.id, row.split, row.relation) for row in rows)


def _facts_of(rows: list[Outcome]) -> _Facts:
    relations: dict[str, list[str]] = {split: [] for split in METRIC_OF_SPLIT}
    for row in rows:
        relations[row.split].append(row.relation)
    seeds = {UNKNOWN: 1, HELDOUT: 2}
    counts = {split: resample_counts(relations[split], seed) for split, seed in seeds.items()}
    return _Facts(_layout(rows), relations, counts)


def arm_of(record: Record) -> tuple[str, str]:
    """Returns method and protocol of a record as they are shown; seeds of an arm share them."""
    name, settings = record.method.name, record.method.settings
    try:
        label = describe(name, resolve(name, settings))
    except UserError:
        told = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
        label = f"{name}({told})" if told else name
    protocol = record.protocol
    return label, f"{protocol.name}@{protocol.sha256[:8]}" if protocol else "open"


def _shown(seeds: list[_Seed]) -> list[_Seed]:
    """One record a seed, the best verified: a reproduction stands for what it reproduced."""
    chosen: dict[Any, _Seed] = {}
    for one in sorted(seeds, key=lambda one: (-LEVELS.index(one.record.level), one.record.id)):
        record = one.record
        unknown = record.weights_sha256 or record.id
        chosen.setdefault(unknown if record.seed is None else record.seed, one)
    return sorted(chosen.values(), key=lambda one: (one.record.seed or 0, one.record.id))


def _seed(record: Record, rows: list[Outcome], facts: _Facts) -> _Seed:
    texts: dict[str, list[str]] = {split: [] for split in METRIC_OF_SPLIT}
    final: dict[str, list[float]] = {split: [] for split in METRIC_OF_SPLIT}
    for row in rows:
        texts[row.split].append(row.curve)
        final[row.split].append(float(row.final))
    outcomes = {split: np.asarray(values) for split, values in final.items()}
    if len(record.curve) < 2:
        return _Seed(record, outcomes, {}, None)
    curve = {split: split_of(found) for split, found in texts.items()}
    points = {METRIC_OF_SPLIT[split]: _points_of(found) for split, found in curve.items()}
    by_step = {
        point.step: {name: values[index] for name, values in points.items()}
        for index, point in enumerate(record.curve)
    }
    crossing = find_crossing(curve[UNKNOWN], curve[HELDOUT], *facts.counts.values())
    return _Seed(record, outcomes, by_step, crossing)


def _row(arm: _Arm, arms: Mapping[tuple[str, str], _Arm], facts: _Facts) -> dict[str, Any]:
    records = [one.record for one in arm.seeds]
    references = {name: _reference(name, arm, arms) for name in (KNOWN_ONLY, SFT)}
    held = facts.counts[HELDOUT]
    return {
        "id": arm.identifier,
        "method": arm.method,
        "family": records[0].method.name,
        "protocol": arm.protocol,
        "track": records[0].track,
        "trials": max((r.trials for r in records if r.trials), default=None),
        "level": min((record.level for record in records), key=LEVELS.index),
        "heldout_in_training": _declared(records),
        "reference": arm.method == KNOWN_ONLY,
        "records": [record.id for record in records],
        "seeds": [record.seed for record in records],
        "task_learning": _estimate(arm, KNOWN, facts),
        "plasticity": _estimate(arm, UNKNOWN, facts),
        "stability": _estimate(arm, HELDOUT, facts),
        "stability_macro": _macro(arm.mean(HELDOUT), facts.relations[HELDOUT]),
        "stability_range": _range([float(one.final[HELDOUT].mean()) for one in arm.seeds]),
        "lost": _average([_metric(record, "lost") for record in records]),
        "gained": _average([_metric(record, "gained") for record in records]),
        "stability_at_p90": _at_p90(arm, facts),
        "loss_against": {name: _loss(arm, other, held) for name, other in references.items()},
        "difference_at_p90": {SFT: _difference_at_p90(arm, references[SFT])},
        "cost": {key: _average([r.cost.model_dump()[key] for r in records]) for key in _COSTS},
        "curve": _mean_curve(arm),
    }


_COSTS = ("steps", "tokens", "extra_forwards", "extra_data", "gpu_hours")


def _reference(name: str, arm: _Arm, arms: Mapping[tuple[str, str], _Arm]) -> _Arm | None:
    """The reference under the same recipe, at the same rate if there is one."""
    recipe = arm.protocol.split("@")[0]
    found = [
        other
        for (method, protocol), other in arms.items()
        if method == name and protocol.split("@")[0] == recipe
    ]
    ours = set(arm.by_seed())
    return max(
        found,
        key=lambda other: (other.protocol == arm.protocol, len(ours & set(other.by_seed()))),
        default=None,
    )


def _declared(records: list[Record]) -> str:
    """The gravest of what the seeds declare about D_Held in training."""
    told = {record.training_data.heldout for record in records}
    return next(word for word in ("included", "unknown", "excluded") if word in told)


def _metric(record: Record, name: str) -> float | None:
    value = record.metrics.get(name)
    return float(value["value"] or 0) if isinstance(value, dict) and "value" in value else None


def _average(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if values and len(present) == len(values) else None


def _range(values: list[float]) -> dict[str, float]:
    return {"lowest": min(values), "highest": max(values)}


def _estimate(arm: _Arm, split: str, facts: _Facts) -> dict[str, Any] | None:
    return _plain(proportion(arm.mean(split).tolist(), facts.relations[split]))


def _macro(outcomes: Floats, relations: list[str]) -> float | None:
    labels = np.asarray(relations)
    means = [float(outcomes[labels == name].mean()) for name in sorted(set(relations))]
    return _average(means)


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


def _at_p90(arm: _Arm, facts: _Facts) -> dict[str, Any] | None:
    """S@P90 over seeds with its interval over facts and the seeds' range; None if never."""
    drawn = arm.stability_at_p90()
    if drawn is None:
        return None
    found = [one.crossing for one in arm.seeds if one.crossing]
    reached = drawn[1:][~np.isnan(drawn[1:])]
    # A resample has no width at 0 and 1; a score interval at the crossing has.
    outcomes = np.mean([one.outcomes for one in found], axis=0)
    wilson = proportion(outcomes.tolist(), facts.relations[HELDOUT])
    low, high = np.percentile(reached, [2.5, 97.5]) if len(reached) else (0.0, 1.0)
    return {
        "value": float(drawn[0]),
        "low": min(float(low), wilson.low if wilson else 1.0),
        "high": max(float(high), wilson.high if wilson else 0.0),
        **_range([float(one.stability[0]) for one in found]),
        "coarse": any(one.point <= COARSE_BELOW for one in found),
        "first_point": any(one.point == 1 for one in found),
        "resamples_that_reach": len(reached) / (len(drawn) - 1),
    }


def _loss(arm: _Arm, reference: _Arm | None, counts: Matrix) -> dict[str, Any] | None:
    """S(reference) - S(method), fact by fact over the seeds that both have."""
    if reference is None:
        return None
    ours, theirs = arm.by_seed(), reference.by_seed()
    common = sorted(set(ours) & set(theirs))
    if not common:
        return None
    gaps = [theirs[seed].final[HELDOUT] - ours[seed].final[HELDOUT] for seed in common]
    drawn = np.mean([counts @ gap.astype(np.float32) for gap in gaps], axis=0, dtype=float)
    return _paired(drawn / counts.shape[1], counts.shape[1])


def _paired(drawn: Floats, facts: int) -> dict[str, Any]:
    """A difference and its percentile interval; the estimate comes first, then its resamples."""
    low, high = np.nanpercentile(drawn[1:], [2.5, 97.5])
    return asdict(Estimate(float(drawn[0]), float(low), float(high), facts))


def _difference_at_p90(arm: _Arm, reference: _Arm | None) -> dict[str, Any] | None:
    """S@P90(method) - S@P90(reference) over the seeds that both have, resample by resample."""
    if reference is None or reference is arm:
        return None
    ours, theirs = arm.by_seed(), reference.by_seed()
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]
    gaps = [
        one.crossing.stability - other.crossing.stability
        for one, other in pairs
        if one.crossing and other.crossing
    ]
    if not pairs or len(gaps) < len(pairs) or any(np.isnan(gap[0]) for gap in gaps):
        return None
    return _paired(np.mean(gaps, axis=0), len(pairs[0][0].final[HELDOUT]))


def _mean_curve(arm: _Arm) -> list[dict[str, Any]]:
    """Averages the curves at the steps at which every seed was evaluated."""
    curves = [one.curve for one in arm.seeds]
    names = METRIC_OF_SPLIT.values()
    return [
        {
            "step": step,
            **{name: _average([curve[step][name] for curve in curves]) for name in names},
            "seeds": [[curve[step]["plasticity"], curve[step]["stability"]] for curve in curves],
        }
        for step in sorted(set.intersection(*(set(curve) for curve in curves)))
    ]


def _points_of(split: Split) -> list[float | None]:
    right, asked = split.correct.sum(axis=0), split.asked.sum(axis=0)
    return [float(r) / float(a) if a else None for r, a in zip(right, asked, strict=True)]


def _rank(arms: list[_Arm], rows: list[dict[str, Any]], facts: _Facts) -> None:
    """Puts each row's rank in both tables into it, or None and why."""
    counts = facts.counts[HELDOUT]
    size = len(facts.relations[HELDOUT])
    learning, keeping = {}, {}
    for index, (arm, row) in enumerate(zip(arms, rows, strict=True)):
        crossing = arm.stability_at_p90()
        task = row["task_learning"]
        barred = _barred(row)
        row["unranked"] = {LEARNS: barred, KEEPS: barred}
        if barred is None and crossing is None:
            row["unranked"][LEARNS] = "never reaches P .90" if row["curve"] else "no curve"
        elif barred is None and crossing is not None:
            learning[index] = crossing
        if barred is None and task is not None and task["value"] >= LEARNED_TASK:
            right = [counts @ one.final[HELDOUT].astype(np.float32) for one in arm.seeds]
            keeping[index] = np.mean(right, axis=0, dtype=float) / size
        elif barred is None:
            row["unranked"][KEEPS] = "T below .95"
    for table, drawn in ((LEARNS, learning), (KEEPS, keeping)):
        found = ranks([float(d[0]) for d in drawn.values()], [d[1:] for d in drawn.values()])
        by_index = dict(zip(drawn, found, strict=True))
        for index, row in enumerate(rows):
            row.setdefault("rank", {})[table] = by_index.get(index)


def _barred(row: dict[str, Any]) -> str | None:
    if row["reference"]:
        return "reference"
    return "trained on D_Held" if row["heldout_in_training"] == "included" else None


def _order(table: str) -> Any:
    """Sorts a table: ranked rows first, by their number; the rest after them."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        number = row["stability_at_p90"] if table == LEARNS else row["stability"]
        rank = row["rank"][table]
        value = number["value"] if number else row["stability"]["value"]
        return (rank is None, rank or 0, -value, row["method"], row["protocol"])

    return key
