"""Metrics of a checkpoint, computed from per-fact outcomes and the bundle alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.scoring.crossing import COARSE_BELOW as COARSE_BELOW
from factual_forgetting.scoring.crossing import PLASTICITY_LEVEL as PLASTICITY_LEVEL
from factual_forgetting.scoring.crossing import find_crossing
from factual_forgetting.scoring.statistics import Estimate, mean_difference, proportion, row_of
from factual_forgetting.slick.labelling import ZERO_SHOT


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
        "task_learning": row_of(accuracy(bundle.splits[KNOWN], correct) if trained else None),
        "plasticity": row_of(accuracy(bundle.splits[UNKNOWN], correct) if trained else None),
        "stability": row_of(stability),
        "lost": row_of(accuracy(base_right, lost)),
        "gained": row_of(accuracy(base_wrong, correct)),
        "forgetting_from_label": row_of(_complement(stability)),
        "forgetting_from_base": row_of(mean_difference(differences, _relations(held))),
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


def stability_at(
    points: Sequence[Mapping[str, float | None]], level: float = PLASTICITY_LEVEL
) -> dict[str, Any] | None:
    """Reads stability off a curve where plasticity first reaches a level.

    Args:
        points: Lines of `curve.jsonl`, the untrained model first.
        level: The plasticity asked for.

    Returns:
        `stability` and the marks `first_point` and `coarse` of `Crossing`; None if the level is
        never reached, or D_Held wasn't asked at a neighbouring point.
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
    """Summarises a curve: S@P90 and forgetting from the peak of stability.

    Args:
        points: Lines of `curve.jsonl`, the untrained model first.

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
