from typing import Any

import numpy as np
import pytest

from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.scoring.metrics import (
    curve_metrics,
    final_metrics,
    find_crossing,
    stability_at,
)

START = (0.0, 1.0)
NINE = [(0.1 * i, 0.9) for i in range(1, 9)] + [(0.95, 0.7)]


def lines(*points: tuple[float | None, float | None]) -> list[dict[str, float | None]]:
    return [{"plasticity": p, "stability": s} for p, s in points]


@pytest.mark.parametrize(
    ("points", "stability", "marks"),
    [
        # From (.8, .95) to (1.0, .85): .9 is half way.
        ([START, (0.8, 0.95), (1.0, 0.85)], 0.90, "coarse"),
        # The untrained point is never part of it.
        ([(0.95, 0.2), (0.92, 0.8)], 0.8, "coarse first_point"),
        # The first crossing counts.
        ([START, (0.85, 0.9), (0.95, 0.8), (0.8, 0.7), (0.99, 0.6)], 0.85, "coarse"),
        # Eight points before it are not coarse, seven are.
        ([START, *NINE], 0.9 - 0.2 * 2 / 3, ""),
        ([START, *NINE[1:]], 0.9 - 0.2 * 2 / 3, "coarse"),
        # Points at which plasticity wasn't asked are passed over.
        ([START, (0.8, 0.95), (None, 0.1), (1.0, 0.85)], 0.90, "coarse"),
    ],
)
def test_stability_where_plasticity_is_reached(
    points: list[Any], stability: float, marks: str
) -> None:
    told = {name: name in marks for name in ("coarse", "first_point")}
    assert stability_at(lines(*points)) == {"stability": pytest.approx(stability), **told}


@pytest.mark.parametrize(
    "points",
    [
        [],
        [START, (0.5, 0.9), (0.89, 0.8)],
        # D_Held wasn't asked at a neighbouring point.
        [START, (0.7, 0.9), (0.8, None), (1.0, 0.8)],
        [START, (0.7, 0.9), (0.8, 0.9), (1.0, None)],
    ],
)
def test_what_is_never_reached_or_was_not_asked_is_none(points: list[Any]) -> None:
    assert stability_at(lines(*points)) is None


def test_each_of_many_curves_is_read_as_one_is() -> None:
    rng = np.random.default_rng(0)
    plasticity = np.sort(rng.random((200, 9)), axis=1) * 1.05
    stability = rng.random((200, 9))
    plasticity[rng.random((200, 9)) < 0.1] = stability[rng.random((200, 9)) < 0.1] = np.nan
    found = find_crossing(plasticity).read(stability)
    assert 0 < np.isnan(found).sum() < 100
    ones = [find_crossing(p).read(s) for p, s in zip(plasticity, stability, strict=True)]
    assert np.array_equal(found, ones, equal_nan=True)


def test_forgetting_from_the_peak() -> None:
    metrics = curve_metrics(lines((0.0, 0.5), (0.5, 0.8), (1.0, 0.6)))
    assert metrics["peak_stability"] == 0.8
    assert metrics["forgetting_from_peak"] == pytest.approx(0.2)
    assert metrics["forgetting_from_peak_relative"] == pytest.approx(0.25)
    assert curve_metrics([])["forgetting_from_peak"] is None


def test_lost_and_gained_compare_with_the_base_in_the_same_prompt(bundle: Bundle) -> None:
    # The base of the fixture answers all of D_Held right; 4 of 16 are lost.
    held = [item.fact.id for item in bundle.splits["heldout"]]
    correct = {identity: index >= 4 for index, identity in enumerate(held)}
    metrics = final_metrics(bundle, correct, trained=False)
    assert metrics["stability"]["value"] == 0.75
    assert metrics["lost"]["value"] == 0.25
    assert metrics["gained"] is None
    assert metrics["forgetting_from_label"]["value"] == 0.25
    assert metrics["forgetting_from_base"]["value"] == 0.25
    assert metrics["task_learning"] is None
    assert metrics["plasticity"] is None
