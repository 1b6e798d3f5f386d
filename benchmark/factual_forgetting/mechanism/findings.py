"""What the conditions of an interference experiment show, at equal plasticity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.mechanism.conditions import ABSTAINED, OTHER, RIGHT, SAME, Condition
from factual_forgetting.mechanism.keys import known_facts
from factual_forgetting.mechanism.overlap import regress
from factual_forgetting.scoring.statistics import mean_difference

# Allen-Zhu & Li 2024 (arXiv 2404.05405): what a well-trained transformer stores.
BITS_PER_PARAMETER = 2
_FIXED = ("bundle_sha256", "facts", "mixed", "passes")
_VARIED = ("keys", "values", "method")
Row = dict[str, Any]
Result = Mapping[str, Any]
Outcomes = NDArray[np.float64]


def findings(results: Sequence[Result], bundles: Mapping[str, Bundle], level: float) -> Row:
    """Summarises conditions, seeds together.

    Args:
        results: What `run_condition` returned.
        bundles: Their bundles by sha256.
        level: The plasticity at which conditions are compared.

    Returns:
        `level`; `arms`: a row for each condition but its seed, with `at_level` (None where a seed
        never reaches the level) and `at_end`: `passes`, `plasticity`, `drift` of the middle
        layer, `same` and `other`, the forgetting of D_Held of the new facts' relation and of
        other ones, from the peak of stability, with interval and seeds, and `abstained`, the
        share of D_Held that is answered by an abstention; `overlap`, the slope of forgetting on
        nearness; and `contrasts`: differences in forgetting between conditions that differ in
        their keys, values or method alone, over the seeds that both have.
    """
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        condition = Condition(**result["condition"])
        groups[result["bundle_sha256"], condition.arm].append(result)
    arms = [_arm(group, bundles[sha256], level) for (sha256, _), group in groups.items()]
    contrasts = [_contrast(first, second) for first, second in combinations(arms, 2)]
    for arm in arms:
        del arm["kept"]
    return {"level": level, "arms": arms, "contrasts": [row for row in contrasts if row]}


def crossing(points: Sequence[Mapping[str, Any]], level: float) -> tuple[int, float] | None:
    """Finds where plasticity first reaches a level.

    Returns:
        A point's index, and the weight of that point against the one before it, as
        `scoring.metrics.stability_at` interpolates; None if the level is never reached.
    """
    for index in range(1, len(points)):
        after = points[index]["plasticity"]
        if after >= level:
            before = points[index - 1]["plasticity"]
            return index, 1.0 if index == 1 else (level - before) / (after - before)
    return None


def _arm(group: Sequence[Result], bundle: Bundle, level: float) -> Row:
    first = group[0]
    seeds = [result["condition"]["seed"] for result in group]
    places = [crossing(result["points"], level) for result in group]
    reached = [place for place in places if place]
    at_level = list(zip(group, reached, strict=True)) if len(reached) == len(group) else None
    at_end = [(result, (len(result["points"]) - 1, 1.0)) for result in group]
    forgotten = _forgotten(at_level or at_end)
    return {
        "bundle_sha256": bundle.sha256,
        **{key: first["condition"][key] for key in first["condition"] if key != "seed"},
        "seeds": seeds,
        "parameters": first["parameters"],
        "share_of_capacity": first["bits"] / (BITS_PER_PARAMETER * first["parameters"]),
        "key_tokens": fmean(result["keys"]["tokens"] for result in group),
        "key_rank": fmean(result["keys"]["rank"] for result in group),
        "keys_dropped": sum(result["keys"]["dropped"] for result in group),
        "at_level": _measured(at_level, bundle) if at_level else None,
        "at_end": _measured(at_end, bundle),
        "overlap": _overlap(group, forgotten[SAME], bundle) if at_level else None,
        "drift_curve": _drift_curve(group),
        "kept": {r["condition"]["seed"]: _now(r["points"], at, SAME) for r, at in at_level or []},
    }


_Placed = Sequence[tuple[Result, tuple[int, float]]]


def _forgotten(placed: _Placed) -> dict[str, Outcomes]:
    """Returns outcome at the peak minus outcome now, of each fact, shape (seeds, facts)."""
    return {
        name: np.array([_fall(result["points"], place, name) for result, place in placed])
        for name in (SAME, OTHER)
    }


def _fall(points: Sequence[Mapping[str, Any]], place: tuple[int, float], name: str) -> Outcomes:
    rows = [_outcomes(point, name) for point in points[: place[0] + 1]]
    peak = max(rows, key=lambda row: row.mean() if len(row) else 0.0)
    fall: Outcomes = peak - _now(points, place, name)
    return fall


def _now(points: Sequence[Mapping[str, Any]], place: tuple[int, float], name: str) -> Outcomes:
    index, weight = place
    before, after = (_outcomes(points[i], name) for i in (max(index - 1, 0), index))
    now: Outcomes = weight * after + (1 - weight) * before
    return now


def _outcomes(point: Mapping[str, Any], name: str) -> Outcomes:
    return np.array([mark == RIGHT for mark in point["outcomes"][name]], dtype=float)


def _measured(placed: _Placed, bundle: Bundle) -> Row:
    forgotten = _forgotten(placed)
    strata = _strata(bundle, placed[0][0]["settings"]["relation"])
    return {
        **{
            key: fmean(_between(result["points"], place, (key,)) for result, place in placed)
            for key in ("passes", "plasticity")
        },
        **{name: _estimate(values, strata[name]) for name, values in forgotten.items()},
        "abstained": {name: _abstained(placed, name) for name in forgotten},
        "drift": {
            name: _mean(
                [
                    _between(r["points"], place, ("drift", name, "cosine", r["middle"]))
                    for r, place in placed
                    if r["points"][0]["outcomes"][name]
                ]
            )
            for name in (SAME, OTHER)
        },
        "layers": [
            fmean(_between(r["points"], place, ("drift", SAME, "cosine", i)) for r, place in placed)
            for i in range(placed[0][0]["layers"])
        ],
    }


def _abstained(placed: _Placed, name: str) -> float | None:
    """Share of facts answered by an abstention at the nearest point, over seeds."""
    marks = "".join(
        result["points"][index if weight >= 0.5 else index - 1]["outcomes"][name]
        for result, (index, weight) in placed
    )
    return marks.count(ABSTAINED) / len(marks) if marks else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _between(points: Sequence[Any], place: tuple[int, float], path: Sequence[Any]) -> float:
    index, weight = place

    def at(position: int) -> float:
        value = points[position]
        for key in path:
            value = value[key]
        return float(value)

    return weight * at(index) + (1 - weight) * at(max(index - 1, 0))


def _strata(bundle: Bundle, relation: str) -> dict[str, list[str]]:
    relations = [item.fact.relation for item in bundle.splits[HELDOUT]]
    return {
        SAME: [name for name in relations if name == relation],
        OTHER: [name for name in relations if name != relation],
    }


def _estimate(values: Outcomes, strata: Sequence[str]) -> Row | None:
    """The mean over facts with its interval, and the mean of each seed."""
    estimate = mean_difference(values.mean(axis=0).tolist(), strata)
    seeds = [float(value) for value in values.mean(axis=1)] if estimate else []
    return {**asdict(estimate), "seeds": seeds} if estimate else None


def _drift_curve(group: Sequence[Result]) -> list[Row]:
    """Returns mean drift of the middle layer over the passes that every seed has."""
    length = min(len(result["points"]) for result in group)
    return [
        {
            "passes": fmean(r["points"][i]["passes"] for r in group),
            "plasticity": fmean(r["points"][i]["plasticity"] for r in group),
            "cosine": fmean(r["points"][i]["drift"][SAME]["cosine"][r["middle"]] for r in group),
        }
        for i in range(length)
    ]


def _overlap(group: Sequence[Result], forgotten: Outcomes, bundle: Bundle) -> Row | None:
    relation = group[0]["settings"]["relation"]
    often = Counter(fact.answers[0] for fact in known_facts(bundle, relation))
    held = [i.fact for i in bundle.splits[HELDOUT] if i.fact.relation == relation]
    near = np.array([[row["nearness"] for row in result["held"]] for result in group])
    slope = regress(
        np.clip(forgotten, 0, 1).mean(axis=0),
        near.mean(axis=0),
        {
            "answer frequency": np.log([often[fact.answers[0]] for fact in held]),
            "subject tokens": np.array([row["tokens"] for row in group[0]["held"]], dtype=float),
        },
    )
    return {"nearness": float(near.mean()), **asdict(slope)} if slope else None


def _contrast(first: Row, second: Row) -> Row | None:
    """How many more facts the first condition leaves wrong at the level, fact by fact."""
    differing = [name for name in _VARIED if first[name] != second[name]]
    alike = all(first[name] == second[name] for name in _FIXED)
    seeds = sorted(first["kept"].keys() & second["kept"].keys())
    if len(differing) != 1 or not alike or not seeds:
        return None
    lost = np.mean([second["kept"][seed] - first["kept"][seed] for seed in seeds], axis=0)
    estimate = mean_difference(lost.tolist(), [SAME] * len(lost))
    if estimate is None:
        return None
    (name,) = differing
    told = {key: first[key] for key in (*_FIXED, *_VARIED) if key != name}
    more = {"differing": name, "more": first[name], "than": second[name], "seeds": seeds}
    return {**told, **more, **asdict(estimate)}


def grid_of(found: Row) -> list[Row]:
    """Returns the arms of the first base and kind of values that train until the level."""
    return [
        arm for arm in _trained_like_first(found) if arm["values"] == found["arms"][0]["values"]
    ]


def values_of(found: Row) -> list[Row]:
    """Returns the arms of the first base that differ in nothing but the values."""
    arms = _trained_like_first(found)
    kinds = [[arm[name] for name in ("keys", "facts", "method")] for arm in arms]
    return [arm for arm, kind in zip(arms, kinds, strict=True) if kinds.count(kind) > 1]


def _trained_like_first(found: Row) -> list[Row]:
    first = found["arms"][0]
    alike = ("bundle_sha256", "mixed", "passes")
    return [arm for arm in found["arms"] if all(arm[name] == first[name] for name in alike)]


def cloning_of(found: Row) -> list[Row]:
    """Returns the arms of the first base that train for a given number of passes."""
    first = found["arms"][0]["bundle_sha256"]
    return [a for a in found["arms"] if a["passes"] is not None and a["bundle_sha256"] == first]


def bases_of(found: Row) -> dict[str, list[Row]]:
    """Returns the arms of plain SFT that reach the level, by kind of keys.

    Nothing, unless there are bases of several sizes.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    values = found["arms"][0]["values"]
    for arm in found["arms"]:
        trained = arm["at_level"] and arm["method"] == "sft" and arm["passes"] is None
        if trained and arm["values"] == values:
            groups[arm["keys"]].append(arm)
    sizes = {arm["parameters"] for group in groups.values() for arm in group}
    return groups if len(sizes) > 1 else {}


def markdown(found: Row) -> str:
    """Returns the table of all arms, at the level or at the end; several bases by their size."""
    headers = ["keys", "values", "new facts", "method", "seeds", "passes", "P"]
    headers += ["forgotten, same relation", "other relations", "drift"]
    rows = [_cells(arm, found["level"]) for arm in found["arms"]]
    if len({arm["bundle_sha256"] for arm in found["arms"]}) > 1:
        headers = ["base", *headers]
        sizes = [size(arm["parameters"]) for arm in found["arms"]]
        rows = [[told, *row] for told, row in zip(sizes, rows, strict=True)]
    return str(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


def _cells(arm: Row, level: float) -> list[str]:
    fixed = arm["passes"] is not None
    place = arm["at_end"] if fixed else arm["at_level"] or arm["at_end"]
    missed = "" if fixed or arm["at_level"] else f" (under {level})"
    drift = place["drift"][SAME]
    return [
        arm["keys"] + ("" if arm["mixed"] else ", alone"),
        arm["values"],
        f"{arm['facts']:,}",
        arm["method"],
        str(len(arm["seeds"])),
        f"{place['passes']:.1f}",
        f"{place['plasticity']:.3f}{missed}",
        cell(place[SAME]),
        cell(place[OTHER]),
        "-" if drift is None else f"{drift:.3f}",
    ]


def size(parameters: int) -> str:
    """Writes the size of a base."""
    return f"{parameters / 1e6:.2f} M"


def cell(estimate: Row | None) -> str:
    """Writes an estimate with its interval."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
