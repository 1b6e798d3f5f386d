from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from scipy.stats import t as student

from factual_forgetting.errors import UserError
from factual_forgetting.mechanism.drift import nearness
from factual_forgetting.mechanism.findings import Slope, regress
from memory import peak_memory

Floats = NDArray[np.float64]


def drawn(seed: int, n: int, hidden: int = 16, shift: float = 3.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    found: NDArray[np.float32] = (rng.normal(size=(n, hidden)) + shift).astype(np.float32)
    return found


def plain_nearness(held: NDArray[Any], new: NDArray[Any], nearest: int) -> list[float]:
    center = held.astype(float).mean(axis=0)
    lengths = [np.linalg.norm(side - center, axis=1) for side in (held, new)]
    cosines = (held - center) @ (new - center).T / np.outer(*lengths)
    return [sum(sorted(row)[-nearest:]) / nearest for row in cosines.tolist()]


@pytest.mark.parametrize("nearest", [1, 5, 37])
@pytest.mark.parametrize("size", [1, 7, 37])
def test_nearness_is_that_of_the_plain_formula(nearest: int, size: int) -> None:
    held, new = drawn(1, 11), drawn(2, 37)
    batches = (new[start : start + size] for start in range(0, len(new), size))
    found = nearness(held, batches, nearest)
    assert found.dtype == np.float64
    assert found == pytest.approx(plain_nearness(held, new, nearest), abs=1e-6)


def test_a_subject_among_the_new_ones_is_as_near_as_can_be() -> None:
    held = drawn(1, 20)
    found = nearness(held, [drawn(2, 50), held[3:4]], nearest=1)
    assert found[3] == pytest.approx(1, abs=1e-6)
    assert np.delete(found, 3).max() < 0.99


def test_the_common_direction_counts_for_nothing() -> None:
    """Without centring, a large mean makes every cosine 1."""
    held, new = drawn(1, 30, shift=0), drawn(2, 60, shift=0)
    far = nearness(held + 500, [new + 500])
    assert far == pytest.approx(nearness(held, [new]), abs=1e-3)
    assert far.max() < 0.99


def test_empty_batches_change_nothing() -> None:
    held, new = drawn(1, 6), drawn(2, 9)
    parts = [new[:0], new[:4], new[4:4], new[4:]]
    np.testing.assert_array_equal(nearness(held, parts), nearness(held, [new[:4], new[4:]]))


@pytest.mark.parametrize(
    ("held", "new", "nearest", "told"),
    [
        (0, 9, 5, "no held-out"),
        (3, 4, 5, "4 new subjects"),
        (3, 0, 5, "0 new subjects"),
        (3, 9, 0, "at least one"),
        (3, 9, -1, "at least one"),
    ],
)
def test_mistakes_are_told(held: int, new: int, nearest: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        nearness(drawn(1, held), [drawn(2, new)], nearest)


def test_states_of_another_size() -> None:
    with pytest.raises(ValueError, match="8"):
        nearness(drawn(1, 3), [drawn(2, 9, hidden=8)])


def nearness_of(n: int) -> None:
    """Compares 200 held-out subjects with so many new ones."""
    batches = (drawn(start, 500, 64) for start in range(n // 500))
    assert len(nearness(drawn(1, 200, 64), batches)) == 200


# Held whole, 10^5 new subjects would take 26 MB, and their similarities 80 MB.
@pytest.mark.parametrize("n", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_is_flat_in_the_number_of_new_subjects(n: int) -> None:
    assert peak_memory(nearness_of, n) - peak_memory(nearness_of, 10_000) < 8


# The regression.


def sample(
    seed: int, n: int = 120, slope: float = 0.04
) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Shares over three seeds whose chance of loss rises by `slope` a unit of nearness."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 7, n).astype(float)
    near = rng.normal(size=n) + 0.5 * (tokens - 4)
    frequency = np.log(rng.integers(1, 30, n))
    chance = np.clip(0.4 + slope * near + 0.03 * (tokens - 4), 0, 1)
    return rng.binomial(3, chance) / 3, near, {"frequency": frequency, "tokens": tokens}


def by_hand(lost: Floats, near: Floats, controls: list[Floats]) -> tuple[float, float, float]:
    """Normal equations and the HC3 sandwich, written out."""
    columns = [np.ones(len(lost))] + [(c - c.mean()) / c.std() for c in (near, *controls)]
    x = np.array(columns).T
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ lost
    meat = np.zeros_like(bread)
    for row, y in zip(x, lost, strict=True):
        meat += np.outer(row, row) * ((y - row @ beta) / (1 - row @ bread @ row)) ** 2
    error = (bread @ meat @ bread)[1, 1] ** 0.5
    reach = student.ppf(0.975, len(lost) - x.shape[1]) * error
    return beta[1], beta[1] - reach, beta[1] + reach


def fitted(*data: Any) -> Slope:
    found = regress(*data)
    assert found is not None
    return found


def test_the_slope_is_that_of_the_written_out_formula() -> None:
    lost, near, controls = sample(1)
    found = fitted(lost, near, controls)
    for estimate, used in ((found.controlled, list(controls.values())), (found.alone, [])):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
            by_hand(lost, near, used), rel=1e-9
        )
        assert estimate.n == 120
    assert found.left_out == ()


def test_what_a_control_explains_is_not_put_down_to_nearness() -> None:
    lost, near, controls = sample(9, n=3000, slope=0)
    found = fitted(lost, near, controls)
    assert found.alone.low > 0
    assert found.controlled.low < 0 < found.controlled.high


def test_an_exact_line_is_found() -> None:
    near = np.linspace(-1, 1, 40)
    found = fitted(0.5 + 0.3 * near, near, {})
    assert found.controlled.value == pytest.approx(0.3 * near.std())
    assert found.controlled == found.alone


def test_units_do_not_matter() -> None:
    lost, near, controls = sample(2)
    scaled = {name: 1000 * values - 7 for name, values in controls.items()}
    one, other = fitted(lost, near, controls), fitted(lost, near * 1e-3 + 4, scaled)
    assert other.controlled.low == pytest.approx(one.controlled.low, rel=1e-6)


def test_the_interval_covers_a_known_slope_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    runs, hits = 200, 0
    for _ in range(runs):
        near = rng.normal(size=150)
        near = (near - near.mean()) / near.std()
        tokens = near + rng.normal(size=150)
        # The variance rises with nearness, as that of a share does.
        chance = np.clip(0.2 + 0.05 * near + 0.02 * tokens, 0.01, 0.99)
        found = fitted(rng.binomial(3, chance) / 3, near, {"tokens": tokens})
        hits += found.controlled.low <= 0.05 <= found.controlled.high
    low, high = binom.ppf([0.001, 0.999], runs, 0.95)
    assert low <= hits <= high


def test_constant_controls_are_left_out_and_named() -> None:
    lost, near, controls = sample(3)
    found = fitted(lost, near, {"even": np.full(120, 0.1), **controls, "zero": np.zeros(120)})
    assert found.left_out == ("even", "zero")
    assert found.controlled == fitted(lost, near, controls).controlled


def test_a_control_given_twice_changes_nothing() -> None:
    lost, near, controls = sample(4)
    twice = fitted(lost, near, {**controls, "again": 2 * controls["tokens"] + 1})
    once = fitted(lost, near, controls)
    assert twice.controlled.value == pytest.approx(once.controlled.value)
    assert twice.controlled.high == pytest.approx(once.controlled.high)


def test_a_fact_that_a_control_singles_out_tells_nothing() -> None:
    """Its leverage is 1, at which the plain formula divides zero by zero."""
    lost, near, _ = sample(5)
    single = np.zeros(120)
    single[17] = 1
    found = fitted(lost, near, {"single": single}).controlled
    kept = np.arange(120) != 17
    value, low, high = by_hand(lost[kept], near[kept], [])
    scale = near.std() / near[kept].std()  # the standard deviation is that of all facts
    assert (found.value, found.low, found.high) == pytest.approx(
        (value * scale, low * scale, high * scale), rel=1e-9
    )


@pytest.mark.parametrize(("n", "some"), [(13, False), (14, True)])
def test_too_few_facts_have_no_slope(n: int, some: bool) -> None:
    """Nearness, two controls and the constant are four columns."""
    lost, near, controls = sample(6)
    cut = {name: values[:n] for name, values in controls.items()}
    assert (regress(lost[:n], near[:n], cut) is not None) is some


def test_what_does_not_vary_has_no_slope() -> None:
    lost, near, controls = sample(7)
    assert regress(np.zeros(120), near, controls) is None
    assert regress(lost, np.full(120, 0.3), controls) is None
    assert regress(lost, near, {"nearness": 3 * near + 1}) is None
    assert regress(np.zeros(0), np.zeros(0), {}) is None


def test_numbers_that_are_none() -> None:
    lost, near, controls = sample(8)
    near[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        regress(lost, near, controls)
    with pytest.raises(ValueError, match="dimension"):
        regress(lost, near[:-1], controls)
