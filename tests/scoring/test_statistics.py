from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from factual_forgetting.scoring import statistics
from factual_forgetting.scoring.statistics import Estimate, interval_text, row_of


def proportion(outcomes: list[Any], strata: list[str], *, macro: bool = False) -> Estimate:
    found = statistics.proportion(outcomes, strata, macro=macro)
    assert found
    return found


def mean_difference(differences: list[float], strata: list[str]) -> Estimate:
    found = statistics.mean_difference(differences, strata)
    assert found
    return found


def test_one_stratum_is_close_to_wilson() -> None:
    # Wilson's interval for 45 of 50, by hand: center .8712, half width .0853.
    estimate = proportion([True] * 45 + [False] * 5, ["r"] * 50)
    assert estimate.value == 0.9
    assert estimate.low == pytest.approx(0.786, abs=0.006)
    assert estimate.high == pytest.approx(0.957, abs=0.006)


@pytest.mark.parametrize("right", [0, 300])
def test_the_interval_has_a_width_at_the_ends(right: int) -> None:
    estimate = proportion([True] * right + [False] * (300 - right), ["a", "b", "c"] * 100)
    assert 0.005 < estimate.high - estimate.low < 0.02


@pytest.mark.parametrize("wrong", [0.05, 0.15, 0.2, 0.3, 0.5, 0.84, 1.0, 1.4, 2.0, 3.0])
def test_few_errors_are_covered_too(wrong: float) -> None:
    """The exact coverage where the truth is so many errors among 200 facts."""
    truth, counts = 1 - wrong / 200, range(40)
    intervals = [proportion([True] * (200 - n) + [False] * n, ["a", "b"] * 100) for n in counts]
    mirrored = [proportion([False] * (200 - n) + [True] * n, ["a", "b"] * 100) for n in counts]
    chances = binom.pmf(counts, 200, 1 - truth)
    held = [found.low <= truth <= found.high for found in intervals]
    assert held == [found.low <= 1 - truth <= found.high for found in mirrored]
    coverage = float(chances @ held)
    # A run of counts from none on reaches 93-97 % for few truths; else nothing lower will do.
    runs = chances.cumsum()
    assert coverage >= 0.93
    assert coverage <= 0.97 or coverage == pytest.approx(runs[runs >= 0.93][0])


def test_strata_that_differ_narrow_the_interval() -> None:
    outcomes = [True] * 100 + [False] * 100
    mixed = proportion(outcomes, ["a", "b"] * 100)
    apart = proportion(outcomes, ["a"] * 100 + ["b"] * 100)
    assert apart.high - apart.low < mixed.high - mixed.low


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_interval_covers_the_truth(share: float) -> None:
    rng = np.random.default_rng(0)
    shares = np.clip([share - 0.05, share, min(share + 0.05, 1 - (1 - share) / 2)], 0, 1)
    strata = [name for name in "abc" for _ in range(170)]
    truth = float(np.mean(shares))
    hits = 0
    for _ in range(400):
        outcomes = rng.random(510) < np.repeat(shares, 170)
        estimate = proportion(outcomes.tolist(), strata)
        hits += estimate.low <= truth <= estimate.high
    # 95 % of 400 with three standard errors.
    assert 0.917 <= hits / 400 <= 0.983


def test_strata_that_differ_narrow_the_interval_of_differences() -> None:
    differences = [1.0] * 100 + [0.0] * 100
    mixed = mean_difference(differences, ["a", "b"] * 100)
    apart = mean_difference(differences, ["a"] * 100 + ["b"] * 100)
    assert apart.high - apart.low < 0.7 * (mixed.high - mixed.low)


def test_differences_keep_a_width_where_nothing_differs() -> None:
    # Tango's interval without discordant pairs is (-z^2, z^2) / (n + z^2).
    estimate = mean_difference([0.0] * 300, ["a", "b", "c"] * 100)
    assert estimate.value == 0.0
    assert estimate.high == pytest.approx(3.8415 / 303.8415, abs=1e-4)
    assert estimate.low == pytest.approx(-estimate.high)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_differences_all_alike_reach_the_end_of_the_range(side: float) -> None:
    # Tango's interval where all n pairs are discordant one way begins at (n - z^2) / (n + z^2).
    estimate = mean_difference([side] * 300, ["a"] * 300)
    ends = sorted([side, side * 296.1585 / 303.8415])
    assert [estimate.low, estimate.high] == pytest.approx(ends, abs=1e-4)
    assert side in (estimate.low, estimate.high)


def test_macro_weighs_relations_alike() -> None:
    outcomes = [1.0] * 90 + [0.0] * 10
    relations = ["a"] * 90 + ["b"] * 10
    micro, macro = (proportion(outcomes, relations, macro=flag) for flag in (False, True))
    assert (micro.value, macro.value) == (0.9, 0.5)
    assert macro.high - macro.low > micro.high - micro.low


def test_many_differences_agree_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([-1.0, 0.0, 1.0], size=1000, p=[0.05, 0.75, 0.2])
    estimate = mean_difference(values.tolist(), ["r"] * 1000)
    error = 1.96 * values.std() / np.sqrt(1000)
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.003)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.003)


def test_nothing_gives_nothing() -> None:
    assert statistics.proportion([], []) is None
    assert statistics.mean_difference([], []) is None
    assert interval_text(row_of(None)) == "-"
