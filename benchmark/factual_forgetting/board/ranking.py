"""Resamples of a bundle's facts, and ranks that tell ties from differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # Loads its parts on first use.
from numpy.typing import NDArray

from factual_forgetting.scoring.metrics import Floats

_RESAMPLES = 4000
_SIGNIFICANT = 0.05
Matrix = NDArray[np.float32]


def resample_counts(strata: Sequence[str], seed: int) -> Matrix:
    """Draws facts within their relation: how often each occurs in each resample.

    The draw depends on the bundle alone, so every method is compared on the same resamples, and
    none moves when another record comes. Shape (1 + resamples, facts); the first row is every
    fact once, for the estimate itself.
    """
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + _RESAMPLES, len(strata)), dtype=np.float32)
    labels = np.asarray(strata)
    for name in sorted(set(strata)):
        rows = np.flatnonzero(labels == name)
        counts[1:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), _RESAMPLES)
    return counts


def shares(counts: Matrix, outcomes: Sequence[str]) -> Floats:
    """Returns the share right among the facts asked, at each point of a curve.

    Its shape is (1 + resamples, points); it is NaN where a resample asks nothing.

    Args:
        counts: How often each fact occurs in each resample; shape (1 + resamples, facts).
        outcomes: One text a fact, a sign a point: `1` right, `0` wrong, `-` not asked.
    """
    signs = np.array(outcomes, dtype=bytes).view("S1").reshape(len(outcomes), -1)
    right, asked = (
        (counts @ part.astype(np.float32)).astype(float) for part in (signs == b"1", signs != b"-")
    )
    found: Floats = np.divide(right, asked, out=np.full_like(right, np.nan), where=asked > 0)
    return found


def ranks(estimates: Sequence[float], draws: Sequence[Floats]) -> list[int]:
    """Ranks methods: 1 + the number of those that are significantly better.

    A difference is significant if its paired bootstrap says so at .05 after Holm's correction
    over all pairs. All that are not significantly worse than the best are tied with it; the
    best is the highest of those whose number is there in nearly all resamples, because one
    that is mostly missing can't be told from any other and would tie them all.

    Args:
        estimates: A number for each method; more is better.
        draws: The same in each resample; NaN for none, which counts against every difference.
    """
    if len(estimates) < 2:
        return [1] * len(estimates)
    values, drawn = np.asarray(estimates), np.stack(draws).astype(np.float32)
    differ = np.zeros((len(values), len(values)), dtype=bool)
    differ[np.triu_indices(len(values), 1)] = _holm(_p_values(values, drawn)) < _SIGNIFICANT
    worse = (values[:, None] < values[None, :]) & (differ | differ.T)
    steady = np.isfinite(drawn).mean(axis=1) >= 1 - _SIGNIFICANT
    best = int(np.argmax(np.where(steady, values, -np.inf) if steady.any() else values))
    tied = ~worse[:, best]
    return [int(rank) for rank in np.where(tied, 1, 1 + worse.sum(axis=1))]


def _p_values(values: Floats, drawn: Matrix) -> Floats:
    """Two-sided p-values of all pairs, the first method's with each later one first.

    Where no resample contradicts the difference, its tail is a normal's: resamples alone could
    never tell more than a few dozen methods apart after the correction.
    """
    size = drawn.shape[1]
    found = []
    for i in range(len(values) - 1):
        gaps = values[i] - values[i + 1 :]
        differences = (drawn[i] - drawn[i + 1 :]) * np.sign(gaps)[:, None]
        against = size - (differences > 0).sum(axis=1)
        counted = np.minimum(1.0, 2 * (1 + against) / (1 + size))
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = 2 * scipy.special.ndtr(-np.abs(gaps) / differences.std(axis=1))
        p = np.where(against > 0, counted, np.fmin(counted, tail))
        found.append(np.where(gaps == 0, 1.0, p))
    return np.concatenate(found)


def _holm(p_values: Floats) -> Floats:
    """Adjusts p-values by Holm's step-down procedure (1979)."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
