import random
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import fact

from factual_forgetting.errors import UserError
from factual_forgetting.facts import almanac
from factual_forgetting.facts.aliases import AliasTable, builtin_aliases
from factual_forgetting.facts.cleaning import (
    RULES,
    active_rules,
    answer_in_subject,
    clean,
    short_subject,
)
from factual_forgetting.facts.entityquestions import template_misfit
from factual_forgetting.facts.fact import FACT_SPLITS, stable_hash
from factual_forgetting.facts.matching import normalise


def ordered(rows):
    return sorted(rows, key=lambda row: (row.relation, row.id, repr(row)))


def dropped_by(cleaned):
    return {rule: ordered(rows) for rule, rows in cleaned.dropped.items() if rows}


def only(rule, rows, dropped, **options):
    """Checks that cleaning drops just these rows, by just this rule, and only where it is on."""
    rule = BY_NAME[rule]
    options |= {} if rule.on else {"drop": [rule.name]}
    cleaned = clean(rows, **options)
    assert dropped_by(cleaned) == {rule.name: ordered(dropped)}
    assert ordered(row for row in rows if row not in dropped) == list(cleaned.facts)
    if not rule.fixed:
        options["keep"] = {*options.get("keep", ()), rule.name}
        assert rule.name not in clean(rows, **options).dropped
    if not rule.on:
        assert rule.name not in clean(rows).dropped


BY_NAME = {rule.name: rule for rule in RULES}
held = partial(fact, split="dev")
AMERICAN = {"aliases": ("USA", "US")}
DROPPED_ALONE = {
    "template_misfit": [fact("P136", "Someone", genre) for genre in (
        "crime film", "role-playing video game", "music video game", "soap opera",
        "science fiction", "landscape art", "musical film",
    )],
    "short_subject": [fact("P17", subject) for subject in ("", "It", "Z²")],
    "answer_in_subject": [
        fact("P17", "Bank of China", "China"), fact("P17", "Diocese of Kraków", "Krakow"),
        fact("P17", "THE PARIS OPERA", "Paris"), fact("P17", "C standard library", "C"),
        fact("P17", "Rembrandt's Mother", "Rembrandt"),
        fact("P17", "The O'Brien Press", "O’Brien"),
        fact("P17", "USA Today", "United States of America", **AMERICAN),
    ],
    "several_golds": [fact("P17", "Lake One", "France", "Spain")],
}  # fmt: skip
LEFT_ALONE = {
    "template_misfit": [fact("P17", "Someone", "crime film")] + [
        fact("P136", "Someone", genre) for genre in (
            "film score", "comedy rock", "comic opera", "Western swing", "art rock",
            "heavy metal", "jazz", "gameplay jazz",
        )
    ],
    "short_subject": [fact("P17", subject) for subject in ("東京", "Ada")],
    "answer_in_subject": [
        fact("P17", "Parisian Hotel", "Paris"),
        fact("P17", "The Last of Us", "United States of America", **AMERICAN),
    ],
    "several_golds": [fact("P17", "Lake Two", "France", aliases=("Spain",))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "row"), [(rule, row) for rule, rows in DROPPED_ALONE.items() for row in rows]
)
def test_a_fact_is_dropped_for_itself(rule, row):
    only(rule, [row], [row])


@pytest.mark.parametrize(
    ("rule", "row"), [(rule, row) for rule, rows in LEFT_ALONE.items() for row in rows]
)
def test_a_fact_is_left_alone(rule, row):
    assert not BY_NAME[rule].test(row)


@pytest.mark.parametrize(
    ("rule", "dropped", "kept"),
    [
        (
            "conflicting_golds",
            [fact("P17", "Lake One", "France"), held("P17", "Lake One", "Spain")],
            [fact("P17", "Lake Two", "France")],
        ),
        (
            "several_splits",
            [fact("P17", "Lake One", split=split) for split in ("test", "dev")],
            [fact("P17", "Lake One")],
        ),
        (
            "shared_template",
            [fact("P276", "Lake Two")],
            [fact("P131", "Lake One"), fact("P17", "Lake Two")],
        ),
        (
            "heldout_subject",
            [held("P131", "The LAKE, Oné"), held("P17", "U.S.A.")],
            [fact("P17", "Lake One"), fact("P131", "United States"), held("P17", "Lake Two")],
        ),
        (
            "heldout_object",
            [held("P26", "Ben Rook", "Ada Quill")],
            [fact("P26", "Ada Quill", "Ben Rook")],
        ),
        ("heldout_any_object", [held("P131", "Old Land")], [fact("P17", "Lake One", "Old Land")]),
        # What goes gives nothing away.
        ("template_misfit", [fact("P136", "Lake One", "crime film")], [held("P17", "Lake One")]),
    ],
)
def test_a_fact_is_dropped_for_others(rule, dropped, kept):
    only(rule, dropped + kept, dropped)


def test_unpopular_facts_go_after_cleaning_and_before_a_limit():
    rows = [
        replace(fact("P17", f"Lake {n}"), popularity=popularity)
        for n, popularity in enumerate((None, 4, 5, 6))
    ]
    cleaned = clean(rows, min_popularity=5)
    assert dropped_by(cleaned) == {"min_popularity": rows[1:2]}
    assert ordered(rows[:1] + rows[2:]) == list(cleaned.facts)
    assert "min_popularity" not in clean(rows).dropped
    both = clean(rows, min_popularity=6, limit=1)
    assert {rule: len(gone) for rule, gone in dropped_by(both).items()} == {
        "min_popularity": 2,
        "limit": 1,
    }
    shared = [*rows, replace(fact("P17", "Lake 3", "Elsewhere"), popularity=1)]
    assert rows[3] not in clean(shared, min_popularity=5).facts  # small ones share names too


def test_merged_rows_keep_the_largest_popularity():
    rows = [replace(fact("P17", "Lake One"), popularity=p) for p in (3, None, 7, 5)]
    assert [row.popularity for row in clean(rows).facts] == [7]
    assert [row.popularity for row in clean(rows[1:2] * 2).facts] == [None]


def test_a_question_in_two_relations_conflicts_too():
    rows = [fact("P131", "Lake One", "Bavaria"), fact("P276", "Lake One", "Munich")]
    only("conflicting_golds", rows, rows, keep=["shared_template"])


def test_a_relation_alone_keeps_its_template():
    rows = [fact("P17", "Lake Two"), fact("P276", "Lake Two")]
    assert list(clean(rows).facts) == rows


def test_heldout_subjects_are_known_by_the_aliases_given():
    table = AliasTable({"*": [["Big Town", "Old Town"]]})
    rows = [fact("P131", "Big Town"), fact("P17", "Old Town", split="test")]
    only("heldout_subject", rows, rows[1:], aliases=table)
    assert len(clean(rows).facts) == 2


def test_golds_that_differ_in_writing_or_name_do_not_conflict():
    rows = [
        fact("P17", "Lake One", "United States", aliases=("USA",)),
        fact("P17", "Lake One", "U.S.A.", aliases=("United States",)),
    ]
    assert list(dropped_by(clean(rows))) == ["duplicates"]


def test_kept_conflicts_are_joined_in_a_stable_order():
    rows = [fact("P17", "Lake One", "Spain"), fact("P17", "Lake One", "France")]
    for order in (rows, rows[::-1]):
        cleaned = clean(order, keep=["conflicting_golds"])
        assert [f.answers for f in cleaned.facts] == [("France", "Spain")]


def test_unknown_and_fixed_rules_are_refused():
    with pytest.raises(UserError, match="No cleaning rule nonsense"):
        active_rules(keep=["nonsense"])
    with pytest.raises(UserError, match="an id stands for one fact"):
        active_rules(keep=["duplicates"])


def test_the_almanac_is_clean():
    world = almanac.world()
    cleaned = clean(world)
    assert not dropped_by(cleaned)
    assert {f.id for f in cleaned.facts} == {f.id for f in world}


_RELATIONS = ["P131", "P136", "P17", "P26", "P276"]
_NAMES = "Ada Quill,ada quill,Ben Rook,The Ben Rook,USA,United States,It,Oslo".split(",")
_ROWS = st.lists(
    st.builds(
        lambda relation, subject, answers, split, aliases: fact(
            relation, subject, *answers, split=split, aliases=tuple(aliases)
        ),
        st.sampled_from(_RELATIONS),
        st.sampled_from(_NAMES),
        st.lists(st.sampled_from([*_NAMES, "jazz", "crime film"]), min_size=1, max_size=2),
        st.sampled_from(["train", "dev", "test"]),
        st.lists(st.sampled_from(_NAMES), max_size=1),
    ),
    max_size=12,
)
_CHOICES = st.sets(st.sampled_from([rule.name for rule in RULES if not rule.fixed]))


@settings(max_examples=400, deadline=None)
@given(_ROWS, _CHOICES, _CHOICES, st.randoms(use_true_random=False))
def test_cleaning_is_idempotent_and_blind_to_order(rows, keep, drop, rng: random.Random):
    cleaned = clean(rows, keep, drop)
    again = clean(cleaned.facts, keep, drop)
    assert list(again.facts) == list(cleaned.facts)
    assert not dropped_by(again)
    shuffled = clean(rng.sample(rows, len(rows)), keep, drop)
    assert list(shuffled.facts) == list(cleaned.facts)
    assert dropped_by(shuffled) == dropped_by(cleaned)


def in_memory(rows, keep, drop, limit):
    """The rules in lists, as they read: what is kept, and what each rule drops."""
    dropped = {rule: [] for rule in [*active_rules(keep, drop), "limit"]}
    facts = identified(rows, dropped)
    first = {
        shape: min(rank(f) for f in facts if shape_of(f) == shape) for shape in map(shape_of, facts)
    }
    alone = {
        "shared_template": lambda f: rank(f) > first[shape_of(f)],
        "template_misfit": template_misfit,
        "short_subject": short_subject,
        "answer_in_subject": answer_in_subject,
        "several_golds": lambda f: len(f.answers) > 1,
    }
    facts = sifted(facts, alone, dropped)
    train = [f for f in facts if f.split == "train"]
    by_training = {
        "heldout_subject": lambda f: any(same_subject(f, t) for t in train),
        "heldout_object": lambda f: any(names(f, t) for t in train if related(f, t)),
        "heldout_any_object": lambda f: any(names(f, t) for t in train),
    }
    heldout = sifted([f for f in facts if f.split != "train"], by_training, dropped)
    kept = []
    for group in {(f.relation, f.split) for f in facts}:
        same = [f for f in [*train, *heldout] if (f.relation, f.split) == group]
        same.sort(key=lambda f: stable_hash("limit", 0, f.id))
        kept += same[:limit]
        dropped["limit"] += same[limit:]
    return ordered(kept), {rule: ordered(some) for rule, some in dropped.items() if some}


def identified(rows, dropped):
    facts = []
    for question in {row.question for row in rows}:
        same = [row for row in rows if row.question == question]
        golds = {frozenset(map(normalise, row.accepted)) for row in same}
        if len(golds) > 1 and "conflicting_golds" in dropped:
            dropped["conflicting_golds"] += same
            continue
        for identity in {row.id for row in same}:
            copies = [row for row in same if row.id == identity]
            copies.sort(key=lambda row: (FACT_SPLITS.index(row.split), row.answers, row.aliases))
            for copy in copies[1:]:
                earlier = copy.split != copies[0].split
                dropped["several_splits" if earlier else "duplicates"].append(copy)
            answers = {gold: None for copy in copies for gold in copy.answers}
            aliases = {name: None for copy in copies for name in copy.aliases}
            others = tuple(name for name in aliases if name not in answers)
            merged = replace(copies[0], answers=tuple(answers), aliases=others)
            facts.append(merged if len(same) > 1 else copies[0])
    return facts


def sifted(facts, tests, dropped):
    kept = []
    for one in facts:
        rules = [rule for rule, test in tests.items() if rule in dropped and test(one)]
        (dropped[rules[0]] if rules else kept).append(one)
    return kept


def shape_of(f):
    return f.question.replace(f.subject, "[X]", 1)


def rank(f):
    return int(f.relation[1:])


def same_subject(f, training):
    same = f.id == training.id or normalise(f.question) == normalise(training.question)
    return same or normalise(training.subject) in builtin_aliases().forms(f.subject)


def names(f, training):
    return any(normalise(name) in builtin_aliases().forms(f.subject) for name in training.accepted)


def related(f, training):
    return f.relation == training.relation  # of those asked about, P26 is its own inverse


@settings(max_examples=400, deadline=None)
@given(_ROWS, _CHOICES, _CHOICES, st.integers(1, 3))
def test_cleaning_on_disk_equals_cleaning_in_memory(rows, keep, drop, limit):
    cleaned = clean(rows, keep, drop, limit=limit)
    assert (list(cleaned.facts), dropped_by(cleaned)) == in_memory(rows, keep, drop, limit)
    assert ordered(cleaned.read) == ordered(rows)
    assert len(rows) == len(cleaned.facts) + sum(map(len, cleaned.dropped.values()))
    assert len({f.id for f in cleaned.facts}) == len(cleaned.facts)
    for some in (cleaned.read, cleaned.facts, *cleaned.dropped.values()):
        assert len(some) == len(list(some))
