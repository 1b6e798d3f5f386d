"""Intervals for means over a bundle's relations, facts drawn within them, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy  # Loads its parts on first use.
from numpy.typing import NDArray

_Z = 1.959963984540054
_MOST_MISSED = 0.07
_MOST_GAIN, _MOST_GAIN_MACRO = 4.0, 1.5
_XTOL = 1e-15
_FEWEST_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the ends of its 95 % interval, over n facts."""

    value: float
    low: float
    high: float
    n: int


def row_of(estimate: Estimate | None) -> dict[str, Any] | None:
    """Returns an estimate as plain JSON."""
    return asdict(estimate) if estimate else None


def interval_text(row: Mapping[str, Any] | None) -> str:
    """Writes value and 95 % interval of what `row_of` returned; a dash where there is none."""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if row else "-"


def proportion(
    correct: Sequence[float], strata: Sequence[str], *, macro: bool = False
) -> Estimate | None:
    """Estimates a proportion with a stratified score interval; None without facts.

    Wilson's score interval (1927) at the effective sample size of the stratified design: the
    size of a simple sample with the same variance, each stratum's variance estimated without
    bias. Where few facts are right, or few wrong, its ends are exact binomial ones. It keeps a
    width at 0 and 1, where a bootstrap has none.

    Args:
        correct: One outcome a fact, 0 or 1, or its mean over seeds (the interval is then wider
            than it needs to be, as the variance of a mean is at most that of an outcome).
        strata: The relation of each fact.
        macro: Whether every relation weighs the same, not every fact.
    """
    if not len(correct):
        return None
    value, size = _effective(np.asarray(correct, dtype=float), strata, _binomial, macro=macro)
    low, high = _interval(value, size, len(correct))
    return Estimate(value, low, high, len(correct))


def _effective(
    values: NDArray[np.float64],
    strata: Sequence[str],
    variance: Callable[[NDArray[np.float64]], float],
    *,
    macro: bool = False,
) -> tuple[float, float]:
    """Returns the weighted mean and the size of a simple sample that knows it as well.

    Strata that happen to be pure would promise too much, so the gain is bounded; more tightly
    where a small stratum weighs as much as a large one.
    """
    labels = np.asarray(strata)
    rows = [np.flatnonzero(labels == name) for name in sorted(set(strata))]
    sizes = np.array([len(index) for index in rows], dtype=float)
    weights = np.full(len(rows), 1 / len(rows)) if macro else sizes / len(values)
    means = np.array([values[index].mean() for index in rows])
    value = float(means.mean() if macro else values.mean())
    pooled = variance(values)
    within = np.array(
        [
            variance(values[index]) * len(index) / (len(index) - 1) if len(index) > 1 else pooled
            for index in rows
        ]
    )
    shares = weights**2 / sizes
    ratio = pooled * shares.sum() / (shares @ within) if shares @ within > 0 else math.inf
    if pooled == 0:
        ratio = 1.0
    return value, min(ratio, _MOST_GAIN_MACRO if macro else _MOST_GAIN) / float(shares.sum())


def _binomial(outcomes: NDArray[np.float64]) -> float:
    """An upper bound for means over seeds, exact for outcomes of one."""
    share = float(outcomes.mean())
    return share * (1 - share)


def _interval(share: float, size: float, n: int) -> tuple[float, float]:
    """Wilson's interval at an effective size, with exact ends where few of n facts differ.

    Around one to four of them Wilson's far end lies too close, so that the truth may be inside as
    rarely as 84 times in 100 (Brown, Cai and DasGupta 2001). No end lies closer here than
    Clopper and Pearson's (1934) that misses the truth on its side 7 times in 100. A stricter
    tail would lift coverages that can be 95 % to 98 %.
    """
    center = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    spread = math.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2)) * _Z
    spread /= 1 + _Z**2 / size
    right, wrong = share * n, (1 - share) * n
    lowest = scipy.special.betaincinv(right, wrong + 1, _MOST_MISSED) if share > 0 else 0.0
    highest = scipy.special.betaincinv(right + 1, wrong, 1 - _MOST_MISSED) if share < 1 else 1.0
    return max(0.0, min(center - spread, lowest)), min(1.0, max(center + spread, highest))


def mean_difference(differences: Sequence[float], strata: Sequence[str]) -> Estimate | None:
    """Estimates a mean of paired differences with a stratified score interval; None without any.

    Tango's score interval for paired proportions (1998) at the effective sample size of the
    stratified design; unlike a bootstrap's, it has a width where few facts or none differ.

    Args:
        differences: One a fact, in [-1, 1]: first outcome minus second, averaged over seeds if
            several (the interval is then wider than it needs to be).
        strata: The relation of each fact.
    """
    if not len(differences):
        return None
    values = np.asarray(differences, dtype=float)
    value, size = _effective(values, strata, lambda part: float(part.var()))
    losses = float(np.maximum(values, 0).mean()) * size
    gains = float(np.maximum(-values, 0).mean()) * size
    tango = partial(_tango, value, losses, gains, size)
    return Estimate(value, _end(tango, _Z, value, -1.0), _end(tango, -_Z, value, 1.0), len(values))


def _tango(value: float, losses: float, gains: float, n: float, difference: float) -> float:
    """Tango's score statistic for a true difference; it falls as the difference rises."""
    b = (2 - value) * n * difference - losses - gains
    c = -gains * difference * (1 - difference)
    nuisance = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * nuisance + difference * (1 - difference))
    distance = n * (value - difference)
    return distance / math.sqrt(variance) if variance > 1e-12 else float(np.sign(distance)) * 1e9


def over_seeds(
    estimate: Estimate, *arms: Sequence[float], least: float = 0.0, level: float = 0.95
) -> Estimate:
    """Widens an interval over facts by how far seeds differ, where there are three or more.

    Each end lies as far away as the root of both variances reaches, by Student's t with the
    degrees of freedom of Satterthwaite (1946): three seeds alone tell little of how far others
    would fall. What a fact does in one seed and not in the next is in both variances, so the
    interval is rather too wide than too narrow.

    Args:
        estimate: A mean over facts and seeds, or a difference of such means, with the interval
            over facts alone.
        arms: The value of each seed: of one arm, or of each of the two that differ. Fewer than
            three say nothing; of two arms, one with fewer is taken to differ as the other does.
        least: The least value that there can be; 0 for a share, -1 for a difference.
        level: That of the interval.
    """
    telling = [arm for arm in arms if len(arm) >= _FEWEST_SEEDS]
    if not telling:
        return estimate
    alike = [arm if arm in telling else telling[0] for arm in arms]
    parts = [
        (float(np.var(like, ddof=1)) / len(arm), len(like) - 1)
        for arm, like in zip(arms, alike, strict=True)
    ]
    below, above = (
        _reach(abs(end - estimate.value), parts, level) for end in (estimate.low, estimate.high)
    )
    low, high = max(least, estimate.value - below), min(1.0, estimate.value + above)
    return Estimate(estimate.value, low, high, estimate.n)


def _reach(over_facts: float, parts: Sequence[tuple[float, int]], level: float) -> float:
    """How far an end lies from the mean; `parts` are a variance and its degrees of freedom each."""
    facts = (over_facts / scipy.special.ndtri((1 + level) / 2)) ** 2
    variance = facts + sum(part for part, _ in parts)
    uncertain = sum(part**2 / degrees for part, degrees in parts)
    if uncertain == 0:
        return over_facts
    quantile = scipy.special.stdtrit(variance**2 / uncertain, (1 + level) / 2)
    return float(quantile * math.sqrt(variance))


def _end(statistic: Callable[[float], float], score: float, value: float, most: float) -> float:
    """Finds the difference between the mean and the most there can be that has a score."""
    if statistic(most) * most > score * most:
        return most
    return float(scipy.optimize.brentq(lambda d: statistic(d) - score, value, most, xtol=_XTOL))


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the p-value of McNemar's exact test (1947): facts that only one of two has right."""
    differing = only_first + only_second
    return float(scipy.stats.binomtest(only_first, differing).pvalue) if differing else 1.0
