"""Resamples of a bundle's facts, and ranks that tell ties from differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factual_forgetting.scoring.metrics import Floats
from factual_forgetting.scoring.statistics import Estimate, over_seeds

_RESAMPLES = 4000
_LEVEL = 0.99
Matrix = NDArray[np.float32]
Signs = NDArray[np.bytes_]


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


def signs_of(curves: Sequence[str]) -> Signs:
    """Returns curves as an array, a sign a fact and point."""
    return np.array(curves, dtype=bytes).view("S1").reshape(len(curves), -1)


def shares(counts: Matrix, signs: Signs) -> Floats:
    """Returns the share right among the facts asked, at each point of a curve.

    Its shape is (1 + resamples, points); it is NaN where a resample asks nothing.

    Args:
        counts: How often each fact occurs in each resample; shape (1 + resamples, facts).
        signs: Of each fact at each point: `1` right, `0` wrong, `-` not asked.
    """
    right = (counts @ (signs == b"1").astype(np.float32)).astype(float)
    if (asked := signs != b"-").all():
        return np.asarray(right / len(signs))  # The size of every resample.
    known = (counts @ asked.astype(np.float32)).astype(float)
    found: Floats = np.divide(right, known, out=np.full_like(right, np.nan), where=known > 0)
    return found


@dataclass(frozen=True, slots=True)
class Ranked:
    """A method in a table.

    Attributes:
        drawn: The number that ranks it, first the estimate, then its resamples; NaN for none.
        seeds: That number of each of its seeds.
        facts: Over how many facts it is a mean.
    """

    drawn: Floats
    seeds: Sequence[float]
    facts: int


def difference(drawn: Floats, facts: int, *arms: Sequence[float], level: float = 0.95) -> Estimate:
    """Estimates a difference with its interval over facts, and over seeds where there are three.

    Args:
        drawn: First the estimate, then its resamples; NaN for none.
        facts: Over how many facts it is a mean.
        arms: As `over_seeds` takes them.
        level: That of the interval.
    """
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(drawn[1:], [tail, 100 - tail])
    over_facts = Estimate(float(drawn[0]), float(low), float(high), facts)
    return over_seeds(over_facts, *arms, least=-1.0, level=level)


def ranks(methods: Sequence[Ranked]) -> list[int]:
    """Ranks methods in the order of their numbers, those that can't be told apart together.

    The first leads rank 1. Every next one is compared with the leader of the rank: if it is
    worse, it leads a rank of its own, 1 + the number of methods before it. So a rank depends on
    better methods alone, and no comparison on any third one.

    Worse means that the 99 % interval of the paired difference lies below 0. A resample in which
    either has no number counts against that; a method without one in more than a few can't be
    told from any other, so it leads none.

    Args:
        methods: In any order; more is better.
    """
    found = [0] * len(methods)
    leader: Ranked | None = None
    rank = 1
    order = sorted(range(len(methods)), key=lambda index: -methods[index].drawn[0])
    for place, index in enumerate(order, start=1):
        method = methods[index]
        if leader is not None and _worse(method, leader):
            leader, rank = None, place
        if leader is None and np.isfinite(method.drawn).mean() >= _LEVEL:
            leader = method
        found[index] = rank
    return found


def _worse(method: Ranked, leader: Ranked) -> bool:
    gaps = np.nan_to_num(method.drawn - leader.drawn, nan=0.0)
    return difference(gaps, method.facts, method.seeds, leader.seeds, level=_LEVEL).high < 0
