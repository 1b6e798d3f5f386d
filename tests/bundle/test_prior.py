import pytest

from factual_forgetting.bundle.prior import answer_distance, match_answers
from factual_forgetting.facts.fact import Fact


def facts(*answers: str, prefix: str = "Town") -> list[Fact]:
    return [
        Fact.make("R", f"{prefix} {n}", f"R of {prefix} {n}?", (answer,), "train")
        for n, answer in enumerate(answers)
    ]


def test_matched_answers_come_as_near_as_the_pool_allows() -> None:
    target = facts(*["a"] * 6, *["b"] * 3, "c")
    pool = facts(*["a"] * 10, *["b"] * 2, *["d"] * 30, prefix="Village")
    drawn = match_answers(pool, target, 10, seed=0)
    assert sorted(f.answers[0] for f in drawn) == [*"a" * 6, *"b" * 2, *"d" * 2]
    assert answer_distance(drawn, target) == pytest.approx(0.2)
    assert answer_distance(pool, target) > 0.6
    assert answer_distance(target, target) == 0


def test_a_matched_draw_depends_on_the_seed_alone() -> None:
    pool = facts(*"aabbccddee" * 3)
    target = facts(*"abc")
    drawn = match_answers(pool, target, 9, seed=1)
    assert drawn == match_answers(pool[::-1], target, 9, seed=1)
    assert drawn != match_answers(pool, target, 9, seed=2)
    assert len({f.id for f in drawn}) == 9
