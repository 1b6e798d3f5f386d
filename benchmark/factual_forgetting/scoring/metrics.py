"""Metrics of a checkpoint, computed from per-fact outcomes and the bundle alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.scoring.statistics import Estimate, mean_difference, proportion, row_of
from factual_forgetting.slick.labelling import ZERO_SHOT

PLASTICITY_LEVEL = 0.9
_COARSE_BELOW = 8
Floats = NDArray[np.float64]
_Measured = ArrayLike | Sequence[float | None]


def final_metrics(
    bundle: Bundle, correct: Mapping[str, bool], *, trained: bool = True, outcome: str = ZERO_SHOT
) -> dict[str, Any]:
    """Computes the metrics of one checkpoint.

    Args:
        bundle: The bundle that was asked.
        correct: Outcome by fact id, for the splits that were asked.
        trained: Whether it ever trained on D_train; if not, T and P are None, never poor scores.
        outcome: Which outcome of the base is that of the same prompt: `zero_shot` or `fresh`.

    Returns:
        An estimate (`value`, `low`, `high`, `n`) or None by metric: `task_learning` (T),
        `plasticity` (P), `stability` (S); `lost` of the facts of D_Held that the base gets right
        in the same prompt, and `gained` of the others; forgetting `from_label` (1 - S) and
        `from_base` (base minus checkpoint, paired).
    """
    held = [item for item in bundle.splits[HELDOUT] if item.fact.id in correct]
    base_right = [item for item in held if item.base[outcome]]
    base_wrong = [item for item in held if not item.base[outcome]]
    lost = {item.fact.id: not correct[item.fact.id] for item in base_right}
    differences = [float(i.base[outcome]) - float(correct[i.fact.id]) for i in held]
    relations = [item.fact.relation for item in held]
    s = accuracy(held, correct)
    forgotten = Estimate(1 - s.value, 1 - s.high, 1 - s.low, s.n) if s else None
    return {
        "task_learning": row_of(accuracy(bundle.splits[KNOWN], correct) if trained else None),
        "plasticity": row_of(accuracy(bundle.splits[UNKNOWN], correct) if trained else None),
        "stability": row_of(s),
        "lost": row_of(accuracy(base_right, lost)),
        "gained": row_of(accuracy(base_wrong, correct)),
        "forgetting_from_label": row_of(forgotten),
        "forgetting_from_base": row_of(mean_difference(differences, relations)),
    }


def accuracy(
    items: Sequence[Item], correct: Mapping[str, bool], *, macro: bool = False
) -> Estimate | None:
    """Estimates the share that is right of the facts that were asked; None if none was.

    `correct` has outcomes by fact id. With `macro` every relation weighs the same, not every fact.
    """
    asked = [item for item in items if item.fact.id in correct]
    relations = [item.fact.relation for item in asked]
    return proportion([correct[item.fact.id] for item in asked], relations, macro=macro)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where plasticity first reaches a level: one entry a curve, no axis for a single curve.

    Attributes:
        reached: Whether it does.
        before: The evaluated point before `point`; `point` itself if first after training began.
        point: The point that reaches it.
        weight: Share of `point` in the interpolation between the two.
        passed: Number of evaluated points before `point`, the untrained model left out.
    """

    reached: NDArray[np.bool_]
    before: NDArray[np.intp]
    point: NDArray[np.intp]
    weight: Floats
    passed: NDArray[np.intp]

    @property
    def first_point(self) -> NDArray[np.bool_]:
        """Whether the first point after training began was there already."""
        return np.equal(self.passed, 0)

    @property
    def coarse(self) -> NDArray[np.bool_]:
        """Whether fewer than 8 points lie before the crossing."""
        return np.less(self.passed, _COARSE_BELOW)

    def read(self, values: _Measured) -> Floats:
        """Reads a quantity off at the crossing, linear between evaluated points.

        Args:
            values: Shape (..., points) as `plasticity` had, NaN or None where not measured.

        Returns:
            One value a curve: NaN if the level is never reached or a neighbour wasn't measured.
        """
        measured = np.asarray(values, dtype=float)
        before, there = _at(measured, self.before), _at(measured, self.point)
        return np.where(self.reached, before + self.weight * (there - before), np.nan)


def find_crossing(plasticity: _Measured, level: float = PLASTICITY_LEVEL) -> Crossing:
    """Finds where plasticity first reaches a level.

    Args:
        plasticity: Shape (..., points), the untrained model first, which is never part of a
            crossing; points that are NaN or None, not evaluated, are passed over.
        level: The plasticity asked for.
    """
    values = np.asarray(plasticity, dtype=float)
    points = np.arange(values.shape[-1])
    evaluated = np.isfinite(values) & (points > 0)
    reaches = evaluated & (values >= level)
    point = reaches.argmax(axis=-1)
    earlier = evaluated & (points < point[..., None])
    passed = earlier.sum(axis=-1)
    before = np.where(passed > 0, (earlier * points).max(axis=-1), point)
    low, high = _at(values, before), _at(values, point)
    weight = np.divide(level - low, high - low, out=np.ones_like(low), where=passed > 0)
    return Crossing(reaches.any(axis=-1), before, point, weight, passed)


def _at(values: Floats, point: NDArray[np.intp]) -> Floats:
    found: Floats = np.take_along_axis(values, point[..., None], axis=-1)[..., 0]
    return found


def stability_at(
    points: Sequence[Mapping[str, float | None]], level: float = PLASTICITY_LEVEL
) -> dict[str, Any] | None:
    """Reads stability off a curve where plasticity first reaches a level.

    Args:
        points: Lines of `curve.jsonl`, the untrained model first.
        level: The plasticity asked for.

    Returns:
        `stability`, `first_point` and `coarse` as `Crossing` has them; None where it reads NaN.
    """
    if not points:
        return None
    crossing = find_crossing([point["plasticity"] for point in points], level)
    stability = float(crossing.read([point["stability"] for point in points]))
    if math.isnan(stability):
        return None
    marks = {"first_point": bool(crossing.first_point), "coarse": bool(crossing.coarse)}
    return {"stability": stability, **marks}


def curve_metrics(points: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Summarises a curve, whose `points` are lines of `curve.jsonl`, the untrained model first.

    Returns:
        `stability_at_p90` with its marks, `peak_stability`, and forgetting from that peak in
        points and relative to it (Kaplan et al. 2026); None where it can't be said.
    """
    stabilities = [s for point in points if (s := point["stability"]) is not None]
    peak, last = max(stabilities, default=None), stabilities[-1] if stabilities else None
    fall = peak - last if peak is not None and last is not None else None
    return {
        "stability_at_p90": stability_at(points),
        "peak_stability": peak,
        "forgetting_from_peak": fall,
        "forgetting_from_peak_relative": fall / peak if fall is not None and peak else None,
    }
