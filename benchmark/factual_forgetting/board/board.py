"""The board: a pure function of the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from factual_forgetting import files
from factual_forgetting.board.bundles import ReferenceRows
from factual_forgetting.board.form import LEVELS, Cost, Record
from factual_forgetting.board.ranking import (
    Matrix,
    Ranked,
    Signs,
    difference,
    ranks,
    resample_counts,
    shares,
    signs_of,
)
from factual_forgetting.board.record import Outcome, RecordArm, arm_of, by_split
from factual_forgetting.bundle.manifest import HELDOUT, UNKNOWN
from factual_forgetting.errors import InputError
from factual_forgetting.protocol.curve import METRIC_OF_SPLIT
from factual_forgetting.scoring.frontier import SeedCurve
from factual_forgetting.scoring.metrics import Floats, find_crossing
from factual_forgetting.scoring.statistics import Estimate, over_seeds, proportion, row_of
from factual_forgetting.scoring.styles import FEWSHOT

Entry = tuple[Record, list[Outcome]]
_KNOWN_ONLY, _SFT = "known_only", "sft"
LEARNS, KEEPS, ANY = "learns", "keeps", "any"
# Of those who need not learn. Below the second, a model that never saw D_Unk may have guessed.
_NEEDED = (
    ("task_learning", 0.95, "T below .95"),
    ("plasticity", 0.10, "P below .10: as if never trained on D_Unk"),
)
_Recipe = tuple[str, str]  # A method and the name of a protocol.
_METRICS = tuple(METRIC_OF_SPLIT.values())


def make_board(
    entries: Iterable[Entry], references: Mapping[str, ReferenceRows] | None = None
) -> dict[str, Any]:
    """Groups records by bundle, ranks methods over seeds, and compares with the references.

    Args:
        entries: Records with their outcomes, in any order; the same record twice counts once.
        references: What is known of bundles beside their records, by hash.

    Returns:
        `bundles`: of each its hash, base, reference and `rows`, one for each method, protocol and
        submitter, with ranks of the whole table; `tables` names the rows of *learns* (by S@P90)
        and *keeps* (by final S, for those who need not learn) in order, and of *any* (by few-shot
        S) those that never trained on D_train or were asked otherwise.

    Raises:
        UserError: If records of a bundle have other facts than the rest.
    """
    bundles: dict[str, _Bundle] = {}
    known = references or {}
    # One record at a time: the outcomes of thousands don't fit into memory.
    for record, outcomes in entries:
        if record.bundle_sha256 not in bundles:
            bundles[record.bundle_sha256] = _Bundle.of(record, outcomes)
        bundles[record.bundle_sha256].add(record, outcomes)
    return {
        "format": "board-2",
        "records": sum(len(bundle.seeds) for bundle in bundles.values()),
        "bundles": [_bundle(key, one, known.get(key)) for key, one in sorted(bundles.items())],
    }


def curves_of(bundle: Mapping[str, Any]) -> list[tuple[str, list[SeedCurve]]]:
    """Returns the methods of one of a board's `bundles`, with the curves of their seeds."""
    return [
        (row["method"], list(zip(*(point["seeds"] for point in row["curve"]), strict=True)))
        for row in bundle["rows"]
        if row["curve"]
    ]


@dataclass(frozen=True, slots=True)
class _Seed:
    """One run of an arm, and what it keeps where its plasticity first reaches .90."""

    record: Record
    answered: bool  # Whether the record holds the answer to every fact.
    final: dict[str, Floats]  # Outcome of each fact by split.
    curve: dict[int, dict[str, float | None]]  # Share right by step and metric.
    at_p90: Floats  # S there, first the estimate, then its resamples; NaN where never reached.
    outcomes_at_p90: Floats  # Of each fact of D_Held, interpolated.
    first_point: bool
    coarse: bool


@dataclass(frozen=True, slots=True)
class _Bundle:
    """The records of a bundle, each reduced to what the board needs."""

    first: Record
    facts: list[tuple[str, str, str]]  # Id, split and relation, in order.
    relations: dict[str, list[str]]  # Of each fact by split.
    counts: dict[str, Matrix]  # Resamples of D_Unk and D_Held.
    seeds: dict[str, _Seed] = field(default_factory=dict)  # By the id of their record.

    @classmethod
    def of(cls, record: Record, outcomes: Sequence[Outcome]) -> _Bundle:
        parts = by_split(outcomes)
        relations = {split: [one.relation for one in part] for split, part in parts.items()}
        counts = {s: resample_counts(relations[s], i) for s, i in ((UNKNOWN, 1), (HELDOUT, 2))}
        return cls(record, _facts(outcomes), relations, counts)

    def add(self, record: Record, outcomes: Sequence[Outcome]) -> None:
        if record.id in self.seeds:
            return
        if _facts(outcomes) != self.facts:
            raise InputError(
                f"The record {record.id} has other facts than {self.first.id} of the same "
                "bundle. Find the wrong one with factual-forgetting validate."
            )
        self.seeds[record.id] = _seed(record, outcomes, self.counts)


def _facts(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    return [(one.id, one.split, one.relation) for one in outcomes]


@dataclass(frozen=True, slots=True)
class _Arm:
    """A submitter's seeds of a method under a protocol."""

    key: RecordArm
    seeds: list[_Seed]

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that it stands in."""
        return (LEARNS, KEEPS) if self.key.by_protocol else (ANY,)

    def stability_at_p90(self) -> Floats | None:
        """S@P90, mean of the seeds, first the estimate, then its resamples; None if never."""
        drawn = np.mean([one.at_p90 for one in self.seeds], axis=0)
        return None if np.isnan(drawn[0]) else drawn

    def share(self, split: str, relations: list[str], *, macro: bool = False) -> Estimate | None:
        """The final share right of a split, with its interval over facts and seeds."""
        return _share([one.final[split] for one in self.seeds], relations, macro=macro)

    def paired(self, other: _Arm | None) -> list[tuple[_Seed, _Seed]]:
        """The runs of both that have the same seed."""
        theirs = {one.record.seed: one for one in (other.seeds if other else ())}
        theirs.pop(None, None)  # An unknown seed is the same as none.
        return [(one, theirs[one.record.seed]) for one in self.seeds if one.record.seed in theirs]


def _share(
    seeds: Sequence[Floats], relations: list[str], *, macro: bool = False
) -> Estimate | None:
    """Estimates the share of facts, from outcomes of every seed, over facts and seeds."""
    over_facts = proportion(np.mean(seeds, axis=0).tolist(), relations, macro=macro)
    return over_facts and over_seeds(over_facts, [float(seed.mean()) for seed in seeds])


def _bundle(sha256: str, bundle: _Bundle, reference: ReferenceRows | None) -> dict[str, Any]:
    groups: dict[RecordArm, list[_Seed]] = defaultdict(list)
    for one in bundle.seeds.values():
        groups[arm_of(one.record)].append(one)
    arms = [_Arm(key, _shown(group)) for key, group in sorted(groups.items())]
    references = _references(arms)
    rows = [_row(arm, references, bundle, reference) for arm in arms]
    ordered = {}
    for table in (LEARNS, KEEPS, ANY):
        there = [(arm, row) for arm, row in zip(arms, rows, strict=True) if table in arm.tables]
        _rank(table, there, bundle.counts[HELDOUT])
        ordered[table] = sorted((row for _, row in there), key=partial(_order, table))
    return {
        "sha256": sha256,
        "base": bundle.first.base.pretrained,
        "reference": reference.model_dump(mode="json") if reference else None,
        "counts": {split: len(found) for split, found in bundle.relations.items()},
        "rows": [*ordered[LEARNS], *ordered[ANY]],
        "tables": {table: [row["id"] for row in found] for table, found in ordered.items()},
    }


def _shown(seeds: list[_Seed]) -> list[_Seed]:
    """One record a seed, the best verified: a reproduction stands for what it reproduced."""
    chosen: dict[Any, _Seed] = {}
    for one in sorted(seeds, key=lambda one: (-LEVELS.index(one.record.level), one.record.id)):
        record = one.record
        unknown = record.weights_sha256 or record.id
        chosen.setdefault(unknown if record.seed is None else record.seed, one)
    return sorted(chosen.values(), key=lambda one: (one.record.seed or 0, one.record.id))


def _seed(record: Record, outcomes: Sequence[Outcome], counts: Mapping[str, Matrix]) -> _Seed:
    parts = by_split(outcomes)
    final = {split: np.array([one.final for one in part], float) for split, part in parts.items()}
    answered = all(one.answer is not None for one in outcomes)
    if len(record.curve) < 2:
        never = np.full(len(counts[HELDOUT]), np.nan)
        return _Seed(record, answered, final, {}, never, final[HELDOUT], False, False)
    signs = {split: signs_of([one.curve for one in part]) for split, part in parts.items() if part}
    told = {METRIC_OF_SPLIT[split]: _shares_asked(found) for split, found in signs.items()}
    by_step = {
        point.step: {name: told[name][index] if name in told else None for name in _METRICS}
        for index, point in enumerate(record.curve)
    }
    new, held = signs[UNKNOWN], signs[HELDOUT]
    found = find_crossing(shares(counts[UNKNOWN], new))
    read = np.unique([found.before, found.point])  # Few of the points.
    measured = np.full((len(counts[HELDOUT]), len(record.curve)), np.nan)
    measured[:, read] = shares(counts[HELDOUT], held[:, read])
    stability = found.read(measured)
    before, there = (
        (held[:, point[0]] == b"1").astype(float) for point in (found.before, found.point)
    )
    between = before + found.weight[0] * (there - before)
    first_point, coarse = bool(found.first_point[0]), bool(found.coarse[0])
    return _Seed(record, answered, final, by_step, stability, between, first_point, coarse)


def _shares_asked(signs: Signs) -> list[float | None]:
    """The share right of the facts asked at each point; None where none was."""
    counted = zip((signs == b"1").sum(axis=0), (signs != b"-").sum(axis=0), strict=True)
    return [float(right / asked) if asked else None for right, asked in counted]


def _row(
    arm: _Arm,
    references: Mapping[_Recipe, Sequence[_Arm]],
    bundle: _Bundle,
    reference: ReferenceRows | None,
) -> dict[str, Any]:
    records, key = [one.record for one in arm.seeds], arm.key
    sft, known_only = (_reference(name, arm, references) for name in (_SFT, _KNOWN_ONLY))
    held, relations = bundle.counts[HELDOUT], bundle.relations
    macro = arm.share(HELDOUT, relations[HELDOUT], macro=True)
    declared = {record.training_data.heldout for record in records}
    return {
        "id": files.sha256_json(key[:3] if key.by_protocol else key)[:12],
        "method": key.method,
        "family": records[0].method.name,
        "protocol": key.protocol,
        "submitter": key.submitter,
        "style": key.style,
        "trained": key.trained,
        "track": max(record.track for record in records),
        "trials": max((r.trials for r in records if r.trials), default=None),
        "level": min((record.level for record in records), key=LEVELS.index),
        # The gravest of what the seeds declare.
        "heldout_in_training": max(declared, key=("excluded", "unknown", "included").index),
        "reference": key.by_protocol and key.method == _KNOWN_ONLY,
        "records": [record.id for record in records],
        "seeds": [record.seed for record in records],
        **{
            metric: row_of(arm.share(split, relations[split]))
            if key.trained or split == HELDOUT
            else None
            for split, metric in METRIC_OF_SPLIT.items()
        },
        "stability_macro": macro.value if macro else None,
        "stability_range": _range([float(one.final[HELDOUT].mean()) for one in arm.seeds]),
        **_against_base(arm, relations[HELDOUT], reference),
        "stability_at_p90": _at_p90(arm, relations[HELDOUT]),
        "loss_against": {_KNOWN_ONLY: _loss(arm, known_only, held), _SFT: _loss(arm, sft, held)},
        "difference_at_p90": {_SFT: _difference_at_p90(arm, sft)},
        "cost": {k: _average([getattr(r.cost, k) for r in records]) for k in Cost.model_fields},
        "curve": _mean_curve(arm),
        "unranked": {},
        "rank": {},
    }


def _recipe(arm: _Arm) -> _Recipe:
    return arm.key.method, arm.key.protocol.split("@")[0]


def _references(arms: Sequence[_Arm]) -> dict[_Recipe, list[_Arm]]:
    """The arms that others are compared with, by method and recipe."""
    found: dict[_Recipe, list[_Arm]] = defaultdict(list)
    for arm in arms:
        if arm.key.by_protocol and arm.key.method in (_SFT, _KNOWN_ONLY):
            found[_recipe(arm)].append(arm)
    return found


def _reference(name: str, arm: _Arm, references: Mapping[_Recipe, Sequence[_Arm]]) -> _Arm | None:
    """The reference under the same recipe: of the same submitter, at the same rate, if there is."""
    if not arm.key.by_protocol:
        return None
    return max(
        references.get((name, _recipe(arm)[1]), ()),
        key=lambda other: (
            other.key.submitter == arm.key.submitter,
            other.key.protocol == arm.key.protocol,
            len(arm.paired(other)),
        ),
        default=None,
    )


def _against_base(
    arm: _Arm, relations: list[str], reference: ReferenceRows | None
) -> dict[str, Any]:
    """Share now wrong of what the base gets right in that prompt, and now right of the rest."""
    told = reference.right_in(arm.key.style) if reference else None
    right = np.array([sign == "1" for sign in told or ""])
    if len(right) != len(relations):  # Nobody says what the base gets right.
        return {"lost": None, "gained": None}
    strata, final = np.array(relations), [one.final[HELDOUT] for one in arm.seeds]
    return {
        "lost": row_of(_share([1 - one[right] for one in final], strata[right].tolist())),
        "gained": row_of(_share([one[~right] for one in final], strata[~right].tolist())),
    }


def _average(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if values and len(present) == len(values) else None


def _range(values: list[float]) -> dict[str, float]:
    return {"lowest": min(values), "highest": max(values)}


def _at_p90(arm: _Arm, relations: list[str]) -> dict[str, Any] | None:
    """S@P90 over seeds with its interval over facts and seeds, and their range; None if never."""
    drawn = arm.stability_at_p90()
    if drawn is None:
        return None
    reached = drawn[1:][~np.isnan(drawn[1:])]
    # A resample has no width at 0 and 1; a score interval at the crossing has.
    outcomes = np.mean([one.outcomes_at_p90 for one in arm.seeds], axis=0)
    wilson = proportion(outcomes.tolist(), relations)
    low, high = np.percentile(reached, [2.5, 97.5]) if len(reached) else (0.0, 1.0)
    if wilson:
        low, high = min(low, wilson.low), max(high, wilson.high)
    over_facts = Estimate(float(drawn[0]), float(low), float(high), len(relations))
    seeds = [float(one.at_p90[0]) for one in arm.seeds]
    found = over_seeds(over_facts, seeds)
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        **_range(seeds),
        "coarse": any(one.coarse for one in arm.seeds),
        "first_point": any(one.first_point for one in arm.seeds),
        "resamples_that_reach": len(reached) / (len(drawn) - 1),
    }


def _resampled_mean(counts: Matrix, outcomes: Sequence[Floats]) -> Floats:
    """Mean over facts and seeds, first the estimate, then its resamples."""
    mean = np.mean(outcomes, axis=0).astype(np.float32)
    return np.asarray((counts @ mean).astype(float) / counts.shape[1])


def _loss(arm: _Arm, reference: _Arm | None, counts: Matrix) -> dict[str, Any] | None:
    """S(reference) - S(method), fact by fact over the seeds that both have."""
    gaps = [two.final[HELDOUT] - one.final[HELDOUT] for one, two in arm.paired(reference)]
    if not gaps:
        return None
    seeds = [float(gap.mean()) for gap in gaps]
    return row_of(difference(_resampled_mean(counts, gaps), counts.shape[1], seeds))


def _difference_at_p90(arm: _Arm, reference: _Arm | None) -> dict[str, Any] | None:
    """S@P90(method) - S@P90(reference) over the seeds that both have, resample by resample."""
    gaps = [one.at_p90 - two.at_p90 for one, two in arm.paired(reference)]
    if reference is arm or not gaps or np.isnan(drawn := np.mean(gaps, axis=0))[0]:
        return None
    seeds = [float(gap[0]) for gap in gaps]
    return row_of(difference(drawn, len(arm.seeds[0].final[HELDOUT]), seeds))


def _mean_curve(arm: _Arm) -> list[dict[str, Any]]:
    """Averages the curves at the steps at which every seed was evaluated."""
    curves = [one.curve for one in arm.seeds]
    return [
        {
            "step": step,
            **{name: _average([curve[step][name] for curve in curves]) for name in _METRICS},
            "seeds": [[curve[step]["plasticity"], curve[step]["stability"]] for curve in curves],
        }
        for step in sorted(set.intersection(*(set(curve) for curve in curves)))
    ]


def _rank(table: str, there: Sequence[tuple[_Arm, dict[str, Any]]], counts: Matrix) -> None:
    """Puts the rank of each row of a table into it, or None and why."""
    told = [_ranked_by(table, arm, row, counts) for arm, row in there]
    found = iter(ranks([one for one in told if not isinstance(one, str)]))
    for (_, row), one in zip(there, told, strict=True):
        unranked = isinstance(one, str)
        row["unranked"][table] = one if unranked else None
        row["rank"][table] = None if unranked else next(found)


def _ranked_by(table: str, arm: _Arm, row: dict[str, Any], counts: Matrix) -> Ranked | str:
    """What ranks an arm, or why it has no rank."""
    if row["reference"]:
        return "reference"
    if row["heldout_in_training"] == "included":
        return "trained on D_Held"
    if not all(one.answered for one in arm.seeds):
        return "no answers"
    facts = counts.shape[1]
    if table == LEARNS:
        if (drawn := arm.stability_at_p90()) is None:
            return "never reaches P .90" if row["curve"] else "no curve"
        return Ranked(drawn, [float(one.at_p90[0]) for one in arm.seeds], facts)
    for metric, least, told in _NEEDED if table == KEEPS else ():
        if row[metric] is None or row[metric]["value"] < least:
            return told
    if table == ANY and arm.key.style != FEWSHOT:
        return "not asked few-shot"
    final = [one.final[HELDOUT] for one in arm.seeds]
    return Ranked(_resampled_mean(counts, final), [float(one.mean()) for one in final], facts)


def _order(table: str, row: dict[str, Any]) -> tuple[Any, ...]:
    """Ranked rows first, best number first; the rest after them."""
    number = (table == LEARNS and row["stability_at_p90"]) or row["stability"]
    return (
        row["rank"][table] is None,
        -number["value"],
        row["method"],
        row["protocol"],
        row["submitter"],
    )
