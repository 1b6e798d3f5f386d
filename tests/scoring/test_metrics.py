import pytest

from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.scoring.metrics import Crossing, curve_metrics, final_metrics, stability_at


def test_linear_between_points() -> None:
    # From (.8, .95) to (1.0, .85): .9 is half way.
    points = [(0.0, 1.0), (0.8, 0.95), (1.0, 0.85)]
    assert stability_at(points) == Crossing(pytest.approx(0.90), first_point=False, coarse=True)


def test_the_untrained_point_is_never_part_of_it() -> None:
    assert stability_at([(0.95, 0.2), (0.92, 0.8)]) == Crossing(0.8, first_point=True, coarse=True)


def test_never_reached_is_none() -> None:
    assert stability_at([(0.0, 1.0), (0.5, 0.9), (0.89, 0.8)]) is None


def test_eight_points_before_the_crossing_are_not_coarse() -> None:
    points = [(0.0, 1.0)] + [(0.1 * i, 0.9) for i in range(1, 9)] + [(0.95, 0.7)]
    crossing = stability_at(points)
    assert crossing is not None
    assert not crossing.coarse
    fewer = stability_at([points[0], *points[2:]])
    assert fewer is not None
    assert fewer.coarse


def test_the_first_crossing_counts() -> None:
    points = [(0.0, 1.0), (0.85, 0.9), (0.95, 0.8), (0.8, 0.7), (0.99, 0.6)]
    assert stability_at(points) == Crossing(pytest.approx(0.85), first_point=False, coarse=True)


def test_forgetting_from_the_peak() -> None:
    points = [{"plasticity": p, "stability": s} for p, s in [(0.0, 0.5), (0.5, 0.8), (1.0, 0.6)]]
    metrics = curve_metrics(points)
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
