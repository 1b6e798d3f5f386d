"""The public data as it really is: SOURCE.md's counts, and what cleaning makes of them."""

import re
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from factual_forgetting.facts.account import by_relation, profile
from factual_forgetting.facts.aliases import builtin_aliases, with_aliases
from factual_forgetting.facts.cleaning import answer_in_subject, clean
from factual_forgetting.facts.entityquestions import _checksums, read_entity_questions
from factual_forgetting.facts.leaks import find_leaks
from factual_forgetting.facts.matching import normalise
from factual_forgetting.facts.sources import read_source
from factual_forgetting.files import sha256_file

DATA = Path(__file__).parents[2].parent / "shared/data"
EQ, POPQA = DATA / "entityquestions", DATA / "popqa"
pytestmark = pytest.mark.skipif(not EQ.is_dir(), reason=f"the public data is not at {DATA}")


@pytest.fixture(scope="module")
def rows():
    return list(with_aliases(read_entity_questions(EQ), builtin_aliases()))


@pytest.fixture(scope="module")
def questions(rows):
    found = defaultdict(list)
    for row in rows:
        found[row.relation, row.question].append(row)
    return found


@pytest.fixture(scope="module")
def cleaned(rows):
    return clean(rows)


def told_by_relation():
    lines = (EQ / "SOURCE.md").read_text().splitlines()
    table = [line.strip("| ").split("|") for line in lines if re.match(r"\| P\d+", line)]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in table}


def conflict(same):
    return len(same) > 1 and bool(clean(same).dropped["conflicting_golds"])


def test_files_are_those_of_the_commit():
    for name, sha256 in _checksums().items():
        assert sha256_file(EQ / name) == sha256


def test_the_table_by_relation_is_reproduced(rows, questions):
    conflicts, repeated, unique = defaultdict(int), defaultdict(int), defaultdict(int)
    for (relation, _), same in questions.items():
        unique[relation] += 1
        conflicts[relation] += conflict(same)
        repeated[relation] += len({row.split for row in same}) > 1
    table = told_by_relation()
    assert len(table) == 24
    for relation, facts in by_relation(rows).items():
        (_, train, dev, test, asked, conflicting, across, _, single, characters, _, answers,
         majority, shown) = table[relation]  # fmt: skip
        splits = [sum(fact.split == split for fact in facts) for split in ("train", "dev", "test")]
        assert splits == [int(train), int(dev), int(test)]
        assert unique[relation] == int(asked)
        assert conflicts[relation] == int(conflicting)
        assert repeated[relation] == int(across)
        assert f"{sum(len(f.answers) == 1 for f in facts) / len(facts):.1%}" == f"{single}%"
        assert len({fact.answers[0] for fact in facts}) == int(answers)
        name, percent = majority.rsplit(" ", 1)
        told = profile(facts)
        assert f"{told['characters']:.1f}" == characters
        assert told["majority_share"] == pytest.approx(float(percent.rstrip("%")) / 100, abs=0.0006)
        if told["majority_share"] > 0.01:
            assert told["majority"] == name
        # There a gold counts as whole words, cases folded; normal forms find up to .2 % more.
        found = sum(answer_in_subject(replace(fact, aliases=())) for fact in facts) / len(facts)
        assert found == pytest.approx(float(shown.rstrip("%")) / 100, abs=0.002)


def test_the_totals_are_reproduced(rows, questions):
    assert [sum(r.split == s for r in rows) for s in ("train", "dev", "test")] == [
        176_560,
        22_068,
        22_075,
    ]
    assert len(questions) == 218_166
    assert len({row.subject for row in rows}) == 202_106
    assert all(row.subject != row.question for row in rows)
    assert sum(map(conflict, questions.values())) == 1_446
    assert sum(len({row.split for row in same}) > 1 for same in questions.values()) == 705
    assert len({row.question for row in rows if len(row.subject) < 3}) == 205


def test_the_leaks_are_reproduced(rows, questions):
    train = [row for row in rows if row.split == "train"]
    subjects = {row.subject for row in train}
    objects = {answer for row in train for answer in row.answers}
    trained = {(row.relation, row.question) for row in train}
    dev, test = ([r for r in rows if r.split == split] for split in ("dev", "test"))
    assert sum((row.relation, row.question) in trained for row in dev) == 360
    assert sum((row.relation, row.question) in trained for row in test) == 386
    assert sum(row.subject in subjects for row in dev) == 2_850
    assert len({row.subject for row in test} & subjects) == 2_738
    pairs = {(row.subject, a) for row in train if row.relation == "P26" for a in row.answers}
    asked = [(row.subject, a) for row in dev if row.relation == "P26" for a in row.answers]
    assert (sum((a, s) in pairs for s, a in asked), len(asked)) == (452, 1_054)
    for relation, count in (("P26", 526), ("P40", 348)):
        assert sum(row.subject in objects for row in dev if row.relation == relation) == count
    where = {
        name: {row.question for row in rows if row.relation == name} for name in ("P131", "P276")
    }
    shared = where["P131"] & where["P276"]
    both = [questions["P131", question] + questions["P276", question] for question in shared]
    differ = [len({frozenset(row.answers) for row in same}) > 1 for same in both]
    assert (len(both), sum(differ)) == (40, 33)


@pytest.mark.slow
def test_cleaning_leaves_no_leak(cleaned):
    """Looks once with the checker, and once without any of the room's code but `normalise`."""
    train = [fact for fact in cleaned.facts if fact.split == "train"]
    heldout = [fact for fact in cleaned.facts if fact.split != "train"]
    assert len(train) > 140_000
    assert len(heldout) > 30_000
    assert not find_leaks(train, heldout)
    seen = {text for fact in train for text in map(normalise, (fact.question, fact.subject))}
    mirrors = {normalise(a) for fact in train if fact.relation == "P26" for a in fact.answers}
    for fact in heldout:
        assert normalise(fact.question) not in seen
        assert normalise(fact.subject) not in seen
        assert fact.relation != "P26" or normalise(fact.subject) not in mirrors


@pytest.mark.slow
def test_cleaning_is_idempotent_and_accounts_for_every_row(rows, cleaned):
    assert len({fact.id for fact in cleaned.facts}) == len(cleaned.facts)
    assert len(rows) == len(cleaned.facts) + sum(map(len, cleaned.dropped.values()))
    again = clean(cleaned.facts)
    assert list(again.facts) == list(cleaned.facts)
    assert not any(again.dropped.values())
    assert list(clean(rows[::-1]).facts) == list(cleaned.facts)


def test_popqa_is_reproduced():
    rows = list(read_source(f"popqa:{POPQA / 'popqa_test.json'}"))
    assert len(rows) == 14_267
    assert sum(not row.subject for row in rows) == 3
    told = re.search(r"Per relation: (.*?)\.", (POPQA / "SOURCE.md").read_text()).group(1)
    counts = {
        name.replace(" ", "_"): int(count)
        for name, count in (part.rsplit(" ", 1) for part in told.split(", (")[0].split(", "))
    }
    found = {
        name: sum(bool(fact.subject) for fact in facts) for name, facts in by_relation(rows).items()
    }
    assert found == counts
    assert len(rows) - len({row.question for row in rows}) == 1_199
    assert {row.id for row in rows} >= {row.id for row in clean(rows).facts}


@pytest.mark.slow
def test_no_two_kept_facts_of_a_relation_ask_alike(cleaned):
    by_question = defaultdict(list)
    for fact in cleaned.facts:
        by_question[fact.question].append(fact)
    for same in by_question.values():
        assert not any(one.relation != other.relation for one, other in combinations(same, 2))
