"""What the conditions of an interference experiment show, at equal plasticity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import t as student

from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.facts.fact import Fact
from factual_forgetting.mechanism import conditions
from factual_forgetting.mechanism.conditions import SAME, Condition
from factual_forgetting.mechanism.drift import Row
from factual_forgetting.mechanism.keys import known_facts
from factual_forgetting.scoring.metrics import Floats, find_crossing
from factual_forgetting.scoring.statistics import Estimate, mean_difference, row_of

# Allen-Zhu & Li 2024 (arXiv 2404.05405): what a well-trained transformer stores.
BITS_PER_PARAMETER = 2
_FIXED = ("bundle_sha256", "facts", "mixed", "passes")
VARIED = ("keys", "values", "method")
_SPARE, _FLAT = 10, 1e-9


def summarised(results: Sequence[Row], bundles: Mapping[str, Bundle], level: float) -> Row:
    """Summarises conditions, seeds together.

    Args:
        results: What `run_condition` returned.
        bundles: Theirs, by sha256.
        level: The plasticity at which conditions are compared.

    Returns:
        `level`; `arms`: a row for each condition but its seed, with `at_level` (None where a seed
        never reaches the level) and `at_end`: `passes`, `plasticity`, `drift` of the middle
        layer, `same` and `other`, the forgetting of D_Held of the new facts' relation and of
        other ones, from the peak of stability, with interval and seeds, and `abstained`, its
        share answered by an abstention; `overlap`, the slope of forgetting on nearness; and
        `contrasts`: differences in forgetting between conditions that differ in their keys, values
        or method alone, over the seeds that both have.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for result in results:
        groups[result["bundle_sha256"], Condition(**result["condition"]).arm].append(result)
    arms = [_arm(group, bundles[sha256], level) for (sha256, _), group in groups.items()]
    contrasts = [_contrast(first, second) for first, second in combinations(arms, 2)]
    for arm in arms:
        del arm["kept"]
    return {"level": level, "arms": arms, "contrasts": [row for row in contrasts if row]}


@dataclass(frozen=True, slots=True)
class _Moment:
    """A place on a condition's curve: a point, weighed against the one before it."""

    result: Row
    index: int
    weight: float = 1.0

    def read(self, *path: Any) -> Floats:
        """Returns what was measured, linear between the points; outcomes as 1 for right."""
        points = self.result["points"]
        before, after = _value(points[self.index - 1], *path), _value(points[self.index], *path)
        return np.asarray(self.weight * after + (1 - self.weight) * before)


def _value(point: Row, *path: Any) -> Floats:
    found: Any = reduce(lambda value, key: value[key], path, point)
    if isinstance(found, str):
        found = [mark == conditions.RIGHT for mark in found]
    return np.array(found, float)


def _arm(group: Sequence[Row], bundle: Bundle, level: float) -> Row:
    first, seeds = group[0], [result["condition"]["seed"] for result in group]
    held = conditions.held_facts(bundle, first["settings"]["relation"])
    crossings = [find_crossing([p["plasticity"] for p in r["points"]], level) for r in group]
    at_level = [
        _Moment(result, int(at.point), float(at.weight))
        for result, at in zip(group, crossings, strict=True)
        if all(each.reached for each in crossings)
    ]
    at_end = [_Moment(result, len(result["points"]) - 1) for result in group]
    kept = [moment.read("outcomes", SAME) for moment in at_level]
    return {
        "bundle_sha256": bundle.sha256,
        **{key: value for key, value in first["condition"].items() if key != "seed"},
        "seeds": seeds,
        "parameters": first["parameters"],
        "share_of_capacity": first["bits"] / (BITS_PER_PARAMETER * first["parameters"]),
        "key_tokens": fmean(result["keys"]["tokens"] for result in group),
        "key_rank": fmean(result["keys"]["rank"] for result in group),
        "keys_dropped": sum(result["keys"]["dropped"] for result in group),
        "at_level": _measured(at_level, held) if at_level else None,
        "at_end": _measured(at_end, held),
        "overlap": _overlap(at_level, bundle, held[SAME]) if at_level else None,
        "drift_curve": _drift_curve(group),
        "kept": dict(zip(seeds, kept, strict=False)),
    }


def _measured(moments: Sequence[_Moment], held: Mapping[str, Sequence[Fact]]) -> Row:
    middle = moments[0].result["middle"]
    cosines = {name: [m.read("drift", name, "cosine") for m in moments] for name in held}
    drift = {name: list(map(fmean, zip(*rows, strict=True))) for name, rows in cosines.items()}
    return {
        **{key: fmean(m.read(key) for m in moments) for key in ("passes", "plasticity")},
        **{name: _estimate(moments, name, facts) for name, facts in held.items()},
        "abstained": {name: _abstained(moments, name) for name in held},
        "drift": {name: found[middle] if found else None for name, found in drift.items()},
        "layers": drift[SAME],
    }


def _forgotten(moments: Sequence[_Moment], name: str) -> Floats:
    """Returns outcome at the peak minus outcome now, of each fact, shape (seeds, facts)."""
    peaks = [
        max((_value(p, "outcomes", name) for p in m.result["points"][: m.index + 1]), key=np.sum)
        for m in moments
    ]
    return np.array(peaks) - [moment.read("outcomes", name) for moment in moments]


def _estimate(moments: Sequence[_Moment], name: str, facts: Sequence[Fact]) -> Row | None:
    """Returns the mean forgetting of facts with its interval, and the mean of each seed."""
    values = _forgotten(moments, name)
    relations = [fact.relation for fact in facts]
    row = row_of(mean_difference(values.mean(axis=0).tolist(), relations))
    return row and {**row, "seeds": values.mean(axis=1).tolist()}


def _abstained(moments: Sequence[_Moment], name: str) -> float | None:
    """Returns the share of facts answered by an abstention at the nearest point, over seeds."""
    nearest = [m.result["points"][m.index - (m.weight < 0.5)] for m in moments]
    marks = "".join(point["outcomes"][name] for point in nearest)
    return marks.count(conditions.ABSTAINED) / len(marks) if marks else None


def _drift_curve(group: Sequence[Row]) -> list[Row]:
    """Returns mean drift of the middle layer over the passes that every seed has."""
    middle = group[0]["middle"]
    return [
        {
            "passes": fmean(point["passes"] for point in points),
            "plasticity": fmean(point["plasticity"] for point in points),
            "cosine": fmean(point["drift"][SAME]["cosine"][middle] for point in points),
        }
        for points in zip(*(result["points"] for result in group), strict=False)
    ]


def _overlap(moments: Sequence[_Moment], bundle: Bundle, held: Sequence[Fact]) -> Row | None:
    rows = [moment.result["held"] for moment in moments]
    often = Counter(fact.answers[0] for fact in known_facts(bundle, held[0].relation))
    near = np.array([[row["nearness"] for row in facts] for facts in rows])
    slope = regress(
        np.clip(_forgotten(moments, SAME), 0, 1).mean(axis=0),
        near.mean(axis=0),
        {
            "answer frequency": np.log([often[fact.answers[0]] for fact in held]),
            "subject tokens": np.array([row["tokens"] for row in rows[0]], dtype=float),
        },
    )
    return {"nearness": float(near.mean()), **asdict(slope)} if slope else None


def _contrast(first: Row, second: Row) -> Row | None:
    """Returns how many more facts the first condition leaves wrong at the level, fact by fact."""
    differing = [name for name in VARIED if first[name] != second[name]]
    alike = all(first[name] == second[name] for name in _FIXED)
    seeds = sorted(first["kept"].keys() & second["kept"].keys())
    if len(differing) != 1 or not alike or not seeds:
        return None
    lost = np.mean([second["kept"][seed] - first["kept"][seed] for seed in seeds], axis=0)
    row = row_of(mean_difference(lost.tolist(), [SAME] * len(lost)))
    (name,) = differing
    told = {key: first[key] for key in (*_FIXED, *VARIED) if key != name}
    more = {"differing": name, "more": first[name], "than": second[name], "seeds": seeds}
    return row and {**told, **more, **row}


def like_first(found: Row, rows: Sequence[Row], *names: str) -> list[Row]:
    """Returns the rows that agree with the first arm in some of its settings."""
    first = found["arms"][0]
    return [row for row in rows if all(row[name] == first[name] for name in names)]


def grid_of(found: Row) -> list[Row]:
    """Returns the arms of the first base and kind of values that train until the level."""
    return like_first(found, found["arms"], "bundle_sha256", "mixed", "passes", "values")


def values_of(found: Row) -> list[Row]:
    """Returns the arms of the first base that differ in nothing but the values."""
    arms = like_first(found, found["arms"], "bundle_sha256", "mixed", "passes")
    kinds = [[arm[name] for name in ("keys", "facts", "method")] for arm in arms]
    return [arm for arm, kind in zip(arms, kinds, strict=True) if kinds.count(kind) > 1]


def cloning_of(found: Row) -> list[Row]:
    """Returns the arms of the first base that train for a given number of passes."""
    arms = like_first(found, found["arms"], "bundle_sha256")
    return [arm for arm in arms if arm["passes"] is not None]


def bases_of(found: Row) -> dict[str, list[Row]]:
    """Returns the arms of plain SFT that reach the level, by keys, if bases differ in size."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for arm in like_first(found, found["arms"], "values"):
        if arm["at_level"] and arm["method"] == "sft" and arm["passes"] is None:
            groups[arm["keys"]].append(arm)
    sizes = {arm["parameters"] for group in groups.values() for arm in group}
    return groups if len(sizes) > 1 else {}


def size(parameters: int) -> str:
    """Writes the size of a base."""
    return f"{parameters / 1e6:.2f} M"


@dataclass(frozen=True, slots=True)
class Slope:
    """How much more is lost at one standard deviation more of nearness, as a share in [-1, 1].

    Attributes:
        controlled: At equal controls, with its 95 % interval.
        alone: Without controls.
        left_out: Controls that don't vary, which control nothing.
    """

    controlled: Estimate
    alone: Estimate
    left_out: tuple[str, ...]


def regress(lost: Floats, nearness: Floats, controls: Mapping[str, Floats]) -> Slope | None:
    """Regresses how often each fact was lost on its nearness to the new subjects.

    Ordinary least squares on standardised columns. A share of seeds has no constant variance,
    so the standard errors are HC3 (MacKinnon & White 1985, doi 10.1016/0304-4076(85)90158-7),
    and the interval is Student's at facts minus columns degrees of freedom. Facts count as
    independent.

    Args:
        lost: Share of seeds in which each fact was lost, in [0, 1], shape (facts,).
        nearness: As `nearness` returns it, shape (facts,).
        controls: By name, for example the logarithm of the answer's frequency; of shape (facts,).

    Returns:
        None if facts are fewer than columns + 10, if `lost` or `nearness` doesn't vary, or if the
        controls determine nearness.

    Raises:
        ValueError: If lengths differ or a number isn't finite.
    """
    left_out = tuple(name for name, values in controls.items() if _is_flat(values))
    kept = [values for name, values in controls.items() if name not in left_out]
    table = np.column_stack([lost, nearness, *kept]).astype(np.float64)
    if not np.isfinite(table).all():
        raise ValueError("regress takes finite numbers only")
    columns = table.shape[1]  # nearness, controls and the constant
    if len(table) < columns + _SPARE or _is_flat(lost) or _is_flat(nearness):
        return None
    scaled = (table - table.mean(axis=0)) / table.std(axis=0)
    controlled, alone = (_first_slope(table[:, 0], scaled[:, 1:end]) for end in (columns, 2))
    return Slope(controlled, alone, left_out) if controlled and alone else None


def _is_flat(values: Floats) -> bool:
    return not len(values) or bool(np.ptp(values) <= _FLAT * np.abs(values).max())


def _first_slope(y: Floats, columns: Floats) -> Estimate | None:
    """Estimates the slope of the first column, if the others don't determine it."""
    design = np.column_stack([columns, np.ones(len(y))])
    rank = int(np.linalg.matrix_rank(design))
    if rank == np.linalg.matrix_rank(design[:, 1:]):
        return None
    solve = np.linalg.pinv(design)
    leverage = np.einsum("ij,ji->i", design, solve)
    residuals = y - design @ (solve @ y)
    # A fact that a control singles out is fitted exactly, and tells nothing of the slope.
    free = leverage < 1 - _FLAT
    errors = np.where(free, residuals / np.where(free, 1 - leverage, 1), 0)
    value, spread = float(solve[0] @ y), float(np.sqrt(((solve[0] * errors) ** 2).sum()))
    reach = float(student.ppf(0.975, len(y) - rank)) * spread
    return Estimate(value, value - reach, value + reach, len(y))
