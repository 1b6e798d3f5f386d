from dataclasses import replace

import pytest

from factual_forgetting.comparison.interview import Reply
from factual_forgetting.comparison.outcomes import (
    FATES,
    SURENESS,
    Pair,
    empty_note,
    floor,
    grouped,
    measures,
)
from factual_forgetting.facts.fact import Fact


def pair(number: int, known: bool, base: bool, tuned: bool, relation: str = "R") -> Pair:
    name = f"{relation}{number}"
    fact = Fact.make(relation, name, f"What of {name}?", ("yes",), popularity=number)
    texts = {True: "yes", False: "no"}
    return Pair(
        fact,
        known,
        number / 10 if known else None,
        Reply(base, None, texts[base]),
        Reply(tuned, None, texts[tuned]),
    )


# Of ten known facts six are kept, two lost, one regained, one neither; four aren't known.
FOUND = [
    *(pair(n, True, True, True) for n in range(6)),
    *(pair(n, True, True, False) for n in (6, 7)),
    pair(8, True, False, True),
    pair(9, True, False, False),
    pair(10, False, False, True, "Q"),
    pair(11, False, False, False, "Q"),
    pair(12, False, False, False, "Q"),
    pair(13, False, True, True, "Q"),
]


def test_shares_are_those_worked_out_by_hand() -> None:
    found = measures(FOUND)
    values = {key: found[key]["value"] for key in found if key != "fates"}
    assert values == pytest.approx(
        {
            "stability": 7 / 10,
            "base_stability": 8 / 10,
            "kept": 6 / 8,
            "lost": 2 / 8,
            "net": 1 / 10,
            "gained": 1 / 3,
        }
    )
    assert found["fates"] == {"kept": 6, "lost": 2, "regained": 1, "neither": 1}
    assert {one.fate for one in FOUND} == set(FATES)
    told = floor(FOUND)
    assert (told["stability"]["value"], told["lost"]["value"]) == pytest.approx((0.8, 0.2))
    assert told["gained"]["value"] == 1 / 4


def test_groups_are_relations_and_thirds_of_numbers() -> None:
    found = grouped(FOUND)
    assert set(found) == {"relation", "popularity", SURENESS}
    assert [(row["group"], row["known"]) for row in found["relation"]] == [("Q", 0), ("R", 10)]
    assert found["relation"][0]["net"] is None
    assert [row["known"] for row in found["popularity"]] == [4, 3, 3]
    assert [row["known"] for row in found[SURENESS]] == [4, 3, 3]
    assert [row["fates"]["lost"] for row in found["popularity"]] == [0, 1, 1]
    assert found["popularity"][-1]["gained"]["value"] == 1 / 3


def test_groups_are_domains_where_facts_have_them() -> None:
    kinds = {True: "even", False: "odd"}
    found = [
        replace(p, fact=replace(p.fact, domain=kinds[p.fact.popularity % 2 == 0])) for p in FOUND
    ]
    rows = grouped(found)["domain"]
    assert [(row["group"], row["known"]) for row in rows] == [("even", 5), ("odd", 5)]
    assert [row["fates"]["lost"] for row in rows] == [1, 1]


def test_a_column_that_says_nothing_is_left_out() -> None:
    plain = [one for one in FOUND if one.fact.popularity == 3] * 2
    assert set(grouped(plain)) == {"relation"}


def test_a_checkpoint_that_answers_nothing() -> None:
    silent = [Pair(p.fact, p.known, None, p.base, Reply(False, None, "")) for p in FOUND]
    assert "answers nothing to 100% of the questions" in empty_note("tuned", silent)[0]
    assert empty_note("tuned", FOUND) == []
