import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factual_forgetting.errors import UserError
from factual_forgetting.facts import almanac
from factual_forgetting.facts.aliases import AliasTable, builtin_aliases
from factual_forgetting.facts.cleaning import (
    RULES,
    active_rules,
    answer_in_subject,
    clean,
    short_subject,
    template_misfit,
)
from factual_forgetting.facts.fact import SPLITS, Fact, stable_hash
from factual_forgetting.facts.matching import normalise

TEMPLATES = {
    "P17": "Which country is [X] located in?",
    "P26": "Who is [X] married to?",
    "P131": "Where is [X] located?",
    "P136": "What type of music does [X] play?",
    "P276": "Where is [X] located?",
}


def fact(relation, subject, *answers, split="train", aliases=()):
    question = TEMPLATES[relation].replace("[X]", subject)
    return Fact.make(relation, subject, question, answers or ("Somewhere",), split, aliases)


def ordered(rows):
    return sorted(rows, key=lambda row: (row.relation, row.id, repr(row)))


def dropped_by(cleaned):
    return {rule: ordered(rows) for rule, rows in cleaned.dropped.items() if rows}


def only(rule, rows, dropped, **options):
    """Checks that cleaning drops just these rows, by just this rule, and not with --keep."""
    cleaned = clean(rows, **options)
    assert dropped_by(cleaned) == {rule: ordered(dropped)}
    kept = [row for row in rows if row not in dropped]
    assert ordered(kept) == list(cleaned.facts)
    if not next(r for r in RULES if r.name == rule).fixed:
        options["keep"] = {*options.get("keep", ()), rule}
        assert rule not in clean(rows, **options).dropped


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


def test_duplicates_are_merged():
    rows = [fact("P17", "Lake One", "France"), fact("P17", "Lake One", "France")]
    cleaned = clean(rows)
    assert list(cleaned.facts) == rows[:1]
    assert dropped_by(cleaned) == {"duplicates": rows[1:]}


def test_conflicting_golds_are_dropped_whole():
    rows = [fact("P17", "Lake One", "France"), fact("P17", "Lake One", "Spain", split="dev")]
    only("conflicting_golds", [*rows, fact("P17", "Lake Two", "France")], rows)


def test_golds_that_differ_in_writing_or_name_do_not_conflict():
    rows = [
        fact("P17", "Lake One", "United States", aliases=("USA",)),
        fact("P17", "Lake One", "U.S.A.", aliases=("United States",)),
    ]
    assert list(dropped_by(clean(rows))) == ["duplicates"]


def test_a_question_in_two_relations_conflicts_too():
    rows = [fact("P131", "Lake One", "Bavaria"), fact("P276", "Lake One", "Munich")]
    only("conflicting_golds", rows, rows, keep=["shared_template"])


def test_kept_conflicts_are_joined_in_a_stable_order():
    rows = [fact("P17", "Lake One", "Spain"), fact("P17", "Lake One", "France")]
    for order in (rows, rows[::-1]):
        cleaned = clean(order, keep=["conflicting_golds"])
        assert [f.answers for f in cleaned.facts] == [("France", "Spain")]


def test_of_several_splits_the_first_stays():
    rows = [fact("P17", "Lake One", split=split) for split in ("test", "dev", "train")]
    only("several_splits", rows, rows[1::-1])


def test_a_shared_template_stays_with_the_lower_relation():
    rows = [fact("P131", "Lake One"), fact("P276", "Lake Two"), fact("P17", "Lake Two")]
    only("shared_template", rows, rows[1:2])
    assert list(clean(rows[1:]).facts) == rows[:0:-1]


@pytest.mark.parametrize(
    ("genre", "fits"),
    [
        ("crime film", False),
        ("role-playing video game", False),
        ("music video game", False),
        ("soap opera", False),
        ("science fiction", False),
        ("landscape art", False),
        ("musical film", False),
        ("film score", True),
        ("comedy rock", True),
        ("comic opera", True),
        ("Western swing", True),
        ("art rock", True),
        ("heavy metal", True),
        ("jazz", True),
        ("gameplay jazz", True),
    ],
)
def test_a_genre_fits_the_question_if_it_is_music(genre, fits):
    row = fact("P136", "Someone", genre)
    assert template_misfit(row) is not fits
    assert not template_misfit(fact("P17", "Someone", genre))
    if not fits:
        only("template_misfit", [row], [row])


@pytest.mark.parametrize(
    ("subject", "short"), [("", True), ("It", True), ("東京", False), ("Ada", False), ("Z²", True)]
)
def test_short_subjects_are_dropped(subject, short):
    row = fact("P17", subject, "France")
    assert short_subject(row) is short
    if short:
        only("short_subject", [row], [row])


@pytest.mark.parametrize(
    ("subject", "answers", "aliases", "shown"),
    [
        ("Bank of China", ["China"], (), True),
        ("Diocese of Kraków", ["Krakow"], (), True),
        ("THE PARIS OPERA", ["Paris"], (), True),
        ("Parisian Hotel", ["Paris"], (), False),
        ("USA Today", ["United States of America"], ("USA", "US"), True),
        ("The Last of Us", ["United States of America"], ("USA", "US"), False),
        ("C standard library", ["C"], (), True),
        ("Rembrandt's Mother", ["Rembrandt"], (), True),
        ("The O'Brien Press", ["O’Brien"], (), True),
    ],
)
def test_answers_that_the_subject_shows_are_dropped(subject, answers, aliases, shown):
    row = fact("P17", subject, *answers, aliases=aliases)
    assert answer_in_subject(row) is shown
    if shown:
        only("answer_in_subject", [row], [row])


def test_several_golds_go_on_request():
    rows = [fact("P17", "Lake One", "France", "Spain"), fact("P17", "Lake Two", "France")]
    assert len(clean(rows).facts) == 2
    only("several_golds", rows, rows[:1], drop=["several_golds"])


def test_heldout_subjects_of_training_are_dropped():
    rows = [
        fact("P17", "Lake One"),
        fact("P131", "The LAKE, Oné", split="dev"),
        fact("P17", "Lake Two", split="dev"),
    ]
    only("heldout_subject", rows, rows[1:2])


def test_heldout_subjects_are_known_by_their_aliases():
    rows = [fact("P131", "United States"), fact("P17", "U.S.A.", split="dev")]
    only("heldout_subject", rows, rows[1:])
    table = AliasTable({"*": [["Big Town", "Old Town"]]})
    rows = [fact("P131", "Big Town"), fact("P17", "Old Town", split="test")]
    only("heldout_subject", rows, rows[1:], aliases=table)
    assert clean(rows).facts


def test_mirrored_pairs_are_dropped():
    rows = [fact("P26", "Ada Quill", "Ben Rook"), fact("P26", "Ben Rook", "Ada Quill", split="dev")]
    only("heldout_object", rows, rows[1:])


def test_other_objects_go_on_request():
    rows = [fact("P17", "Lake One", "Old Land"), fact("P131", "Old Land", split="dev")]
    assert len(clean(rows).facts) == 2
    only("heldout_any_object", rows, rows[1:], drop=["heldout_any_object"])


def test_training_facts_that_go_leave_heldout_facts_alone():
    rows = [fact("P136", "Lake One", "crime film"), fact("P17", "Lake One", split="dev")]
    only("template_misfit", rows, rows[:1])


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


_NAMES = [
    "Ada Quill",
    "ada quill",
    "Ben Rook",
    "The Ben Rook",
    "USA",
    "United States",
    "It",
    "Oslo",
]
_ROWS = st.lists(
    st.builds(
        lambda relation, subject, answers, split, aliases: fact(
            relation, subject, *answers, split=split, aliases=tuple(aliases)
        ),
        st.sampled_from(sorted(TEMPLATES)),
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


@settings(max_examples=200, deadline=None)
@given(_ROWS)
def test_every_row_is_accounted_for_once(rows):
    cleaned = clean(rows)
    assert len(rows) == len(cleaned.facts) + sum(map(len, cleaned.dropped.values()))
    assert len({f.id for f in cleaned.facts}) == len(cleaned.facts)


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
            copies.sort(key=lambda row: (SPLITS.index(row.split), row.answers, row.aliases))
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
    return f.relation == training.relation  # of TEMPLATES, P26 is its own inverse


@settings(max_examples=400, deadline=None)
@given(_ROWS, _CHOICES, _CHOICES, st.integers(1, 3))
def test_cleaning_on_disk_equals_cleaning_in_memory(rows, keep, drop, limit):
    cleaned = clean(rows, keep, drop, limit=limit)
    assert (list(cleaned.facts), dropped_by(cleaned)) == in_memory(rows, keep, drop, limit)
    assert ordered(cleaned.read) == ordered(rows)
    for some in (cleaned.read, cleaned.facts, *cleaned.dropped.values()):
        assert len(some) == len(list(some))
