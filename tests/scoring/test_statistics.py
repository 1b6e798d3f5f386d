import numpy as np
import pytest

from factual_forgetting.scoring.statistics import mean_difference, proportion


def test_one_stratum_is_close_to_wilson() -> None:
    # Wilson's interval for 45 of 50, by hand: center .8712, half width .0853.
    estimate = proportion([True] * 45 + [False] * 5, ["r"] * 50)
    assert estimate is not None
    assert estimate.value == 0.9
    assert estimate.low == pytest.approx(0.786, abs=0.006)
    assert estimate.high == pytest.approx(0.957, abs=0.006)


@pytest.mark.parametrize("right", [0, 300])
def test_the_interval_has_a_width_at_the_ends(right: int) -> None:
    estimate = proportion([True] * right + [False] * (300 - right), ["a", "b", "c"] * 100)
    assert estimate is not None
    assert 0.005 < estimate.high - estimate.low < 0.02


def test_strata_that_differ_narrow_the_interval() -> None:
    outcomes = [True] * 100 + [False] * 100
    mixed = proportion(outcomes, ["a", "b"] * 100)
    apart = proportion(outcomes, ["a"] * 100 + ["b"] * 100)
    assert mixed is not None
    assert apart is not None
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
        assert estimate is not None
        hits += estimate.low <= truth <= estimate.high
    # 95 % of 400 with three standard errors.
    assert 0.917 <= hits / 400 <= 0.983


def test_paired_differences_are_resampled_within_strata() -> None:
    # A constant difference in each stratum leaves nothing to resample.
    estimate = mean_difference([1.0] * 30 + [0.0] * 30, ["a"] * 30 + ["b"] * 30)
    assert estimate is not None
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)


def test_the_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([-1.0, 0.0, 1.0], size=1000, p=[0.05, 0.75, 0.2])
    estimate = mean_difference(values.tolist(), ["r"] * 1000)
    assert estimate is not None
    error = 1.96 * values.std() / np.sqrt(1000)
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.003)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.003)


def test_nothing_gives_nothing() -> None:
    assert proportion([], []) is None
    assert mean_difference([], []) is None
