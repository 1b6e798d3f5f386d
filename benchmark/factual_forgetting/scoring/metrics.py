"""Metrics of a checkpoint, computed from per-fact outcomes and the bundle alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.scoring.statistics import Estimate, mean_difference, proportion
from factual_forgetting.slick.labelling import ZERO_SHOT

PLASTICITY_LEVEL = 0.9
COARSE_BELOW = 8


def final_metrics(
    bundle: Bundle, correct: Mapping[str, bool], *, trained: bool = True, outcome: str = ZERO_SHOT
) -> dict[str, Any]:
    """Computes the metrics of one checkpoint.

    Args:
        bundle: The bundle that was asked.
        correct: Outcome by fact id, for D_Held and, where asked, D_Known and D_Unk.
        trained: Whether the checkpoint ever trained on D_train; if not, task learning and
            plasticity are None, never poor scores.
        outcome: Which outcome of the base is that of the same prompt: `zero_shot` or `fresh`.

    Returns:
        For each metric an estimate (`value`, `low`, `high`, `n`), or None:
        `task_learning` (T), `plasticity` (P), `stability` (S); `lost` of the facts of D_Held
        that the base gets right in the same prompt, and `gained` of the others; forgetting
        `from_label` (1 - S) and `from_base` (base minus checkpoint, paired).
    """
    held = bundle.splits[HELDOUT]
    stability = accuracy(held, correct)
    base_right = [item for item in held if item.base[outcome]]
    base_wrong = [item for item in held if not item.base[outcome]]
    lost = {item.fact.id: not correct[item.fact.id] for item in base_right}
    differences = [float(i.base[outcome]) - float(correct[i.fact.id]) for i in held]
    return {
        "task_learning": _row(accuracy(bundle.splits[KNOWN], correct) if trained else None),
        "plasticity": _row(accuracy(bundle.splits[UNKNOWN], correct) if trained else None),
        "stability": _row(stability),
        "lost": _row(accuracy(base_right, lost)),
        "gained": _row(accuracy(base_wrong, correct)),
        "forgetting_from_label": _row(_complement(stability)),
        "forgetting_from_base": _row(mean_difference(differences, _relations(held))),
    }


def accuracy(
    items: Sequence[Item], correct: Mapping[str, bool], *, macro: bool = False
) -> Estimate | None:
    """Estimates the share that is right of the facts that were asked; None if none was.

    Args:
        items: Facts.
        correct: Outcome by fact id.
        macro: Whether every relation weighs the same, not every fact.
    """
    asked = [item for item in items if item.fact.id in correct]
    return proportion([correct[item.fact.id] for item in asked], _relations(asked), macro=macro)


def _relations(items: Sequence[Item]) -> list[str]:
    return [item.fact.relation for item in items]


def _complement(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    return Estimate(1 - estimate.value, 1 - estimate.high, 1 - estimate.low, estimate.n)


def _row(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


@dataclass(frozen=True, slots=True)
class Crossing:
    """Stability where plasticity first reaches a level on a curve.

    Attributes:
        stability: The value, linear between evaluated points.
        first_point: Whether the first point after training began was there already.
        coarse: Whether fewer than 8 points lie before the crossing.
    """

    stability: float
    first_point: bool
    coarse: bool


def stability_at(
    points: Sequence[tuple[float | None, float | None]], level: float = PLASTICITY_LEVEL
) -> Crossing | None:
    """Reads S@P off a curve.

    Args:
        points: (plasticity, stability) at each evaluated point, the untrained model first;
            that point is never part of the interpolation.
        level: The plasticity asked for.

    Returns:
        The crossing, or None if plasticity never reaches the level.
    """
    trained = [(p, s) for p, s in points[1:] if p is not None and s is not None]
    for index, (plasticity, stability) in enumerate(trained):
        if plasticity < level:
            continue
        coarse = index < COARSE_BELOW
        if index == 0:
            return Crossing(stability, first_point=True, coarse=coarse)
        before_p, before_s = trained[index - 1]
        weight = (level - before_p) / (plasticity - before_p)
        value = before_s + weight * (stability - before_s)
        return Crossing(value, first_point=False, coarse=coarse)
    return None


def curve_metrics(points: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Summarises a curve: S@P90 and forgetting from the peak of stability.

    Args:
        points: Lines of `curve.jsonl`, the untrained model first.

    Returns:
        `stability_at_p90` with its marks, `peak_stability`, and forgetting from that peak in
        points and relative to it (Kaplan et al. 2026); None where it can't be said.
    """
    crossing = stability_at([(point["plasticity"], point["stability"]) for point in points])
    stabilities = [s for point in points if (s := point["stability"]) is not None]
    peak, last = max(stabilities, default=None), stabilities[-1] if stabilities else None
    fall = peak - last if peak is not None and last is not None else None
    return {
        "stability_at_p90": asdict(crossing) if crossing else None,
        "peak_stability": peak,
        "forgetting_from_peak": fall,
        "forgetting_from_peak_relative": fall / peak if fall is not None and peak else None,
    }
