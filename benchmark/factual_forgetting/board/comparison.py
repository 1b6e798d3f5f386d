"""Resampled stability of runs on one bundle, and ranks that tell ties from differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from factual_forgetting.scoring.metrics import PLASTICITY_LEVEL

RESAMPLES = 4000
LEVEL = 0.05
Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Split:
    """Outcomes of one run on one split.

    Attributes:
        correct: 1 where a fact was answered right; shape (facts, points).
        asked: 1 where it was asked; same shape.
    """

    correct: Matrix
    asked: Matrix


def split_of(curves: Sequence[str]) -> Split:
    """Reads one text a fact, `1` right, `0` wrong, `-` not asked, as arrays."""
    points = len(curves[0]) if curves else 0
    signs = np.frombuffer("".join(curves).encode(), dtype=np.uint8).reshape(len(curves), points)
    return Split((signs == ord("1")).astype(np.float32), (signs != ord("-")).astype(np.float32))


def resample_counts(strata: Sequence[str], seed: int) -> Matrix:
    """Draws facts within their relation: how often each occurs in each resample.

    The draw depends on the bundle alone, so every method is compared on the same resamples,
    and none of them moves when another record comes.

    Returns:
        Shape (1 + resamples, facts); the first row is every fact once, for the estimate itself.
    """
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + RESAMPLES, len(strata)), dtype=np.float32)
    labels = np.asarray(strata)
    for name in sorted(set(strata)):
        rows = np.flatnonzero(labels == name)
        counts[1:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    return counts


def shares(counts: Matrix, split: Split) -> Floats:
    """Returns the share right among the facts asked; shape (1 + resamples, points).

    NaN where a resample asks nothing.
    """
    right, asked = ((counts @ part).astype(float) for part in (split.correct, split.asked))
    found: Floats = np.full_like(right, np.nan)
    np.divide(right, asked, out=found, where=asked > 0)
    return found


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where plasticity first reaches .90.

    Attributes:
        stability: S@P90, first the estimate, then its resamples; NaN where it is never reached.
        point: Number of the first point that reaches it, among those where plasticity was asked.
        outcomes: Outcome of each fact of D_Held there, interpolated.
    """

    stability: Floats
    point: int
    outcomes: Floats


def find_crossing(
    unknown: Split, held: Split, unknown_counts: Matrix, held_counts: Matrix
) -> Crossing:
    """Reads S@P90 off a curve and off each of its resamples."""
    asked: NDArray[np.bool_] = np.asarray(unknown.asked.any(axis=0))
    asked[0] = True  # The untrained model: kept in its place, and never part of a crossing.
    unknown, held = (
        Split(split.correct[:, asked], split.asked[:, asked]) for split in (unknown, held)
    )
    values, points, weights = crossings(shares(unknown_counts, unknown), shares(held_counts, held))
    point, weight = int(points[0]), float(weights[0])
    before, there = held.correct[:, max(point - 1, 0)], held.correct[:, point]
    return Crossing(values, point, np.asarray((1 - weight) * before + weight * there, float))


def crossings(plasticity: Floats, stability: Floats) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Reads S@P90 off many curves at once, as `scoring.metrics.stability_at` reads one.

    Args:
        plasticity: Shape (resamples, points), the untrained model first; that point is no part.
        stability: Same shape.

    Returns:
        For each resample stability there, NaN where plasticity never reaches .90; the first
        point that reaches it; and the share of that point in the interpolation.
    """
    reached = plasticity >= PLASTICITY_LEVEL
    reached[:, 0] = False
    point = np.argmax(reached, axis=1)
    rows = np.arange(len(point))
    before = np.maximum(point - 1, 0)
    low, high = plasticity[rows, before], plasticity[rows, point]
    inside = point > 1
    weight = np.ones(len(point))
    weight[inside] = ((PLASTICITY_LEVEL - low) / np.where(inside, high - low, 1.0))[inside]
    value = (1 - weight) * stability[rows, before] + weight * stability[rows, point]
    value[point == 1] = stability[point == 1, 1]
    value[~reached.any(axis=1)] = np.nan
    return value, point, weight


def ranks(estimates: Sequence[float], draws: Sequence[Floats]) -> list[int]:
    """Ranks methods: 1 + the number of those that are significantly better.

    A difference is significant if its paired bootstrap says so at .05 after Holm's correction
    over all pairs. All that are not significantly worse than the best are tied with it; the
    best is the highest of those whose number is there in nearly all resamples, because one
    that is mostly missing can't be told from any other and would tie them all.

    Args:
        estimates: A number for each method; more is better.
        draws: The same number in each resample; NaN where there is none, which counts against
            every difference.
    """
    if not estimates:
        return []
    values, drawn = np.asarray(estimates), np.stack(draws).astype(np.float32)
    worse = (values[:, None] < values[None, :]) & (_holm(_p_values(values, drawn)) < LEVEL)
    steady = np.isfinite(drawn).mean(axis=1) >= 1 - LEVEL
    best = int(np.argmax(np.where(steady, values, -np.inf) if steady.any() else values))
    tied = ~worse[:, best]
    return [int(rank) for rank in np.where(tied, 1, 1 + worse.sum(axis=1))]


def _p_values(values: Floats, drawn: Matrix) -> Floats:
    """Two-sided p-values of all pairs.

    Where no resample contradicts the difference, its tail is a normal's: resamples alone could
    never tell more than a few dozen methods apart after the correction.
    """
    size = drawn.shape[1]
    found = np.ones((len(values), len(values)))
    for i in range(len(values) - 1):
        gaps = values[i] - values[i + 1 :]
        differences = (drawn[i] - drawn[i + 1 :]) * np.sign(gaps)[:, None]
        against = size - (differences > 0).sum(axis=1)
        counted = np.minimum(1.0, 2 * (1 + against) / (1 + size))
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = 2 * norm.sf(np.abs(gaps) / differences.std(axis=1))
        p = np.where(against > 0, counted, np.fmin(counted, tail))
        found[i, i + 1 :] = found[i + 1 :, i] = np.where(gaps == 0, 1.0, p)
    return found


def _holm(p_values: Floats) -> Floats:
    """Adjusts the p-values of all pairs by Holm's step-down procedure (1979)."""
    rows, columns = np.triu_indices(len(p_values), 1)
    raw = p_values[rows, columns]
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    result = np.ones_like(p_values)
    result[rows, columns] = result[columns, rows] = adjusted
    return result
