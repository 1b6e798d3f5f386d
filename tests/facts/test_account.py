import pytest

from factual_forgetting.facts.account import (
    account,
    dropped_ids,
    has_majority_answer,
    majority_answer,
    majority_baseline,
    plot_account,
    profile,
)
from factual_forgetting.facts.cleaning import clean
from factual_forgetting.facts.fact import Fact


def fact(subject, answer, relation="R", split="train", aliases=()):
    question = f"{relation} of {subject}?"
    return Fact.make(relation, subject, question, (answer,), split, aliases)


def facts(*answers, relation="R", prefix="Town"):
    return [fact(f"{prefix} {n}", answer, relation) for n, answer in enumerate(answers)]


ROWS = [
    *facts("France", "france", "France", "Spain"),
    fact("Bank of Spain", "Spain"),
    fact("Town 0", "France"),
    *facts("A long answer", relation="S", prefix="Village"),
]


def test_an_account_adds_up():
    cleaned = clean(ROWS)
    told = account(cleaned)
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
    assert dropped_ids(cleaned)["answer_in_subject"] == [ROWS[4].id]


def test_a_relation_without_kept_facts_stays_in_the_account():
    rows = [fact("It", "Here")]
    told = account(clean(rows))
    assert told["relations"]["R"]["kept"]["majority_share"] is None
    assert profile([])["facts"] == 0


def test_the_majority_answer_does_not_depend_on_order():
    assert majority_answer(facts("b", "B", "B", "a", "a")) == "B"
    assert majority_answer(facts("b", "a")) == majority_answer(facts("a", "b")) == "a"


def test_a_plot_is_drawn(tmp_path):
    told = account(clean(ROWS))
    plot_account(told, tmp_path / "plots" / "account.png")
    assert (tmp_path / "plots" / "account.png").read_bytes().startswith(b"\x89PNG")


def test_the_constant_answer_is_scored_by_relation():
    train = [*facts("France", "France", "Spain"), *facts("x", "y", "y", relation="S")]
    heldout = [
        fact("New Town", "French Republic", aliases=("France",)),
        fact("Newer Town", "Spain"),
        fact("Newest Town", "Spain"),
        fact("Some Town", "y", relation="S"),
        fact("Any Town", "z", relation="T"),
    ]
    told = majority_baseline(train, heldout)
    assert told["relations"]["R"] == {"answer": "France", "facts": 3, "accuracy": 1 / 3}
    assert told["relations"]["T"] == {"answer": None, "facts": 1, "accuracy": 0}
    assert told["micro"] == 2 / 5
    assert told["macro"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert majority_baseline(train, [])["micro"] is None


def test_facts_are_told_by_whether_they_have_the_majority_answer():
    told = [has_majority_answer(f, {"R": "France"}) for f in facts("france", "Spain")]
    assert told == [True, False]
    assert not has_majority_answer(fact("Town", "France", relation="S"), {"R": "France"})
