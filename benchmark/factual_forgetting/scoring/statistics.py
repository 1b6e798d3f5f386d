"""Intervals for means over a bundle's relations: fixed strata, facts drawn within them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end.
        n: Number of facts.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(correct: Sequence[float], strata: Sequence[str]) -> Estimate | None:
    """Estimates a proportion with a stratified Wilson interval.

    Wilson's score interval (1927) at the effective sample size of the stratified design, with
    the strata's proportions shrunk towards the pooled one: it keeps a width at 0 and 1, where
    a bootstrap has none.

    Args:
        correct: One outcome a fact, 0 or 1, or its mean over seeds (the interval is then wider
            than it needs to be, as the variance of a mean is at most that of an outcome).
        strata: The relation of each fact.

    Returns:
        The estimate, or None without facts.
    """
    n = len(correct)
    if not n:
        return None
    outcomes = np.asarray(correct, dtype=float)
    pooled = float(outcomes.mean())
    smooth = (n * pooled + 0.5) / (n + 1)
    within = 0.0
    for rows in _strata(strata):
        share = (float(outcomes[rows].sum()) + 2 * smooth) / (len(rows) + 2)
        within += len(rows) * share * (1 - share)
    effective = n * min(max(n * smooth * (1 - smooth) / within, 1.0), 2.0)
    low, high = _wilson(pooled, effective)
    return Estimate(pooled, low, high, n)


def _wilson(share: float, n: float) -> tuple[float, float]:
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, center - spread), min(1.0, center + spread)


def mean_difference(
    differences: Sequence[float], strata: Sequence[str], seed: int = 0
) -> Estimate | None:
    """Estimates a mean of paired differences with a stratified bootstrap interval.

    Args:
        differences: One a fact: first outcome minus second, averaged over seeds if several.
        strata: The relation of each fact.
        seed: Seed of the resampling.

    Returns:
        The estimate with a percentile interval, or None without facts.
    """
    if not len(differences):
        return None
    values = np.asarray(differences, dtype=float)
    means = bootstrap_means(values[:, None], strata, seed)[:, 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def bootstrap_means(
    values: NDArray[np.float64], strata: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Resamples facts within their relation.

    Args:
        values: Shape (facts, columns).
        strata: The relation of each fact.
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        Column means of each resample, shape (resamples, columns).
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((resamples, values.shape[1]))
    for rows in _strata(strata):
        size = len(rows)
        # Drawing rows with replacement is drawing how often each occurs.
        counts = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
        sums += counts @ values[rows]
    return sums / len(values)


def _strata(names: Sequence[str]) -> list[NDArray[np.int64]]:
    labels = np.asarray(names)
    return [np.flatnonzero(labels == name) for name in sorted(set(names))]
