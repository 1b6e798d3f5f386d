import pytest
from making import fact

from factual_forgetting.facts.account import (
    account,
    has_majority_answer,
    majority_answer,
    majority_answers,
    majority_baseline,
    profile,
)
from factual_forgetting.facts.cleaning import clean


def facts(*answers, relation="R"):
    return [fact(relation, f"Town {n}", answer) for n, answer in enumerate(answers)]


ROWS = [
    *facts("France", "france", "France", "Spain"),
    fact("R", "Bank of Spain", "Spain"),
    fact("R", "Town 0", "France"),
    *facts("A long answer", relation="S"),
]


def test_an_account_adds_up():
    told = account(clean(ROWS))
    assert (told["rows"], told["facts"]) == (7, 5)
    assert {rule: n for rule, n in told["rules"].items() if n} == {
        "duplicates": 1,
        "answer_in_subject": 1,
    }
    row = told["relations"]["R"]
    assert row["splits"] == {"train": 4}
    assert row["kept"]["facts"] + sum(row["dropped"].values()) == row["read"]["facts"] == 6
    assert (row["kept"]["answers"], row["kept"]["majority"]) == (2, "France")
    assert row["kept"]["majority_share"] == 0.75
    assert row["read"]["in_subject"] == pytest.approx(1 / 6)
    assert row["kept"]["in_subject"] == 0
    assert told["relations"]["S"]["kept"]["words"] == 3
    assert told["relations"]["S"]["kept"]["characters"] == 13


def test_a_relation_without_kept_facts_stays_in_the_account():
    told = account(clean([fact("R", "It", "Here")]))
    assert told["relations"]["R"]["kept"]["majority_share"] is None
    assert profile([])["facts"] == 0


def test_the_majority_answer_does_not_depend_on_order():
    assert majority_answer(facts("b", "B", "B", "a", "a")) == "B"
    assert majority_answer(facts("b", "a")) == majority_answer(facts("a", "b")) == "a"


def test_the_constant_answer_is_scored_by_relation():
    train = [*facts("France", "France", "Spain"), *facts("x", "y", "y", relation="S")]
    heldout = [
        fact("R", "New Town", "French Republic", aliases=("France",)),
        fact("R", "Newer Town", "Spain"),
        fact("R", "Newest Town", "Spain"),
        fact("S", "Some Town", "y"),
        fact("T", "Any Town", "z"),
    ]
    told = majority_baseline(train, heldout)
    assert told["relations"]["R"] == {"answer": "France", "facts": 3, "accuracy": 1 / 3}
    assert told["relations"]["T"] == {"answer": None, "facts": 1, "accuracy": 0}
    assert told["micro"] == 2 / 5
    assert told["macro"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert majority_baseline(train, [])["micro"] is None


def test_facts_are_told_by_whether_they_have_the_majority_answer():
    majority = majority_answers(facts("France", "Spain", "France"))
    assert majority == {"R": "France"}
    told = [has_majority_answer(f, majority) for f in facts("france", "Spain")]
    assert told == [True, False]
    assert not has_majority_answer(fact("S", "Town", "France"), majority)
