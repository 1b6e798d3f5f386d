"""Cleaning: named rules that drop or merge facts which would measure something else.

Rules stand in stages. Every rule of a stage judges what the stage before left, and only by
what is there, never by its order; a rule that sees less drops no more. So the order of rows
doesn't matter, nor the order of rules within a stage, and cleaning twice changes nothing.
A dropped row is counted once, under the first rule in `RULES` that drops it.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

from factual_forgetting.errors import InputError
from factual_forgetting.facts.aliases import AliasTable
from factual_forgetting.facts.atlas import odd_name
from factual_forgetting.facts.entityquestions import template_misfit
from factual_forgetting.facts.fact import FACT_SPLITS, Fact, stable_hash
from factual_forgetting.facts.leaks import TrainingIndex
from factual_forgetting.facts.matching import normalise
from factual_forgetting.facts.store import FactStore, StoredFacts, enough_room

_SHORTEST = 3
_APOSTROPHES = str.maketrans("'’", "  ")


def short_subject(fact: Fact) -> bool:
    """Tells whether a subject says too little; a wide character (Chinese, Kana) counts twice."""
    widths = map(unicodedata.east_asian_width, fact.subject[:_SHORTEST])
    return sum(2 if width in "WF" else 1 for width in widths) < _SHORTEST


def answer_in_subject(fact: Fact) -> bool:
    """Tells whether an accepted answer stands in the subject, as whole words in normal form.

    An apostrophe may end the word ("Rembrandt's Mother"). Aliases of one or two letters don't
    count: "us" is a word.
    """
    split = fact.subject.translate(_APOSTROPHES)
    subject = f" {normalise(fact.subject)} | {normalise(split)} "
    aliases = (name for name in map(normalise, fact.aliases) if len(name) >= _SHORTEST)
    return any(f" {name} " in subject for name in chain(map(normalise, fact.answers), aliases))


@dataclass(frozen=True)
class _Rule:
    """One rule of cleaning.

    Attributes:
        name: What `--keep` and `--drop` call it.
        on: Whether it applies unless asked otherwise.
        reason: What is wrong with the facts that it drops, for people.
        test: Tells of one fact by itself whether to drop it.
        fixed: Whether it can't be turned off, because an id stands for one fact.
    """

    name: str
    on: bool
    reason: str
    test: Callable[[Fact], bool] | None = None
    fixed: bool = False


RULES = (
    _Rule("duplicates", True, "the same row again in its split, merged", fixed=True),
    _Rule("conflicting_golds", True, "the same question with other golds"),
    _Rule("several_splits", True, "the same question in an earlier split, merged", fixed=True),
    _Rule("shared_template", True, "another relation asks in the same words"),
    _Rule("template_misfit", True, "the question doesn't fit the gold's kind", template_misfit),
    _Rule("odd_name", True, "a place's name has digits, brackets, slashes or the like", odd_name),
    _Rule("short_subject", True, f"a subject of fewer than {_SHORTEST} characters", short_subject),
    _Rule("answer_in_subject", True, "the subject shows the answer", answer_in_subject),
    _Rule("several_golds", False, "more than one gold", lambda fact: len(fact.answers) > 1),
    _Rule("heldout_subject", True, "a held-out subject is a training subject"),
    _Rule("heldout_object", True, "a held-out subject is an answer of the (inverse) relation"),
    _Rule("heldout_any_object", False, "a held-out subject is an answer in training"),
)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The facts that rules left, and those that they took.

    Attributes:
        read: The rows as they were given.
        facts: Kept facts, each id once.
        dropped: Rule to the rows that it dropped or merged, for every rule that was on.
    """

    read: StoredFacts
    facts: StoredFacts
    dropped: dict[str, StoredFacts]


def active_rules(keep: Iterable[str] = (), drop: Iterable[str] = ()) -> list[str]:
    """Returns the names of the rules that apply: `keep` turns rules off, `drop` optional ones on.

    Raises:
        UserError: If a name is unknown, or a rule can't be turned off.
    """
    keep, drop = set(keep), set(drop)
    if unknown := sorted((keep | drop) - {rule.name for rule in RULES}):
        names = ", ".join(rule.name for rule in RULES)
        raise InputError(f"No cleaning rule {', '.join(unknown)}. The rules are: {names}.")
    if fixed := sorted(keep & {rule.name for rule in RULES if rule.fixed}):
        told = f"--keep {' '.join(fixed)} is impossible: an id stands for one fact"
        raise InputError(f"{told}. Leave it out.")
    return [rule.name for rule in RULES if rule.name not in keep and (rule.on or rule.name in drop)]


def clean(
    rows: Iterable[Fact],
    keep: Iterable[str] = (),
    drop: Iterable[str] = (),
    aliases: AliasTable | None = None,
    limit: int | None = None,
    seed: int = 0,
    min_popularity: int | None = None,
) -> Cleaned:
    """Applies the rules to the rows of a source.

    Training facts win: of a question in several splits the first of train, dev, test stays,
    and held-out facts give way to training facts.

    Args:
        rows: Facts as read, ids may repeat; with their aliases. Read once.
        keep: Rules to turn off.
        drop: Optional rules to turn on.
        aliases: Names of one thing, to know a subject by; None for the built-in table.
        limit: Most facts left of each relation and split; the others stand under `limit`.
        seed: Decides which facts a limit keeps.
        min_popularity: Facts of less popularity stand under `min_popularity`.

    Raises:
        UserError: If there is no such rule, or no room on the disk.
    """
    active = active_rules(keep, drop)
    with enough_room():
        store = FactStore(rows)
        _identify(store, active)
        _drop_shared_templates(store, active)
        fit = _sift(store, _judge_alone(active), _KEPT)  # judged as the index takes them
        index = TrainingIndex((fact for fact in fit if fact.split == "train"), aliases)
        for _ in _sift(store, _judge_by_training(active, index), _HELDOUT):
            pass
        if min_popularity is not None:
            for _ in _sift(store, _judge_popularity(min_popularity), _KEPT):
                pass
            active.append("min_popularity")
        if limit is not None:
            store.db.create_function("lot", 1, lambda key: stable_hash("limit", seed, key))
            store.db.execute(_OVER_LIMIT, (limit,))
            active.append("limit")
        return _outcome(store, active)


_Judge = Callable[[Fact], str | None]

_KEPT = "SELECT * FROM facts WHERE rule IS NULL ORDER BY number"
_HELDOUT = "SELECT * FROM facts WHERE rule IS NULL AND split <> 'train' ORDER BY number"
_ALL_READ = "SELECT * FROM rows ORDER BY relation, id, number"
_OF_RULE = "SELECT * FROM facts WHERE rule IS ? ORDER BY relation, id, number"


def _outcome(store: FactStore, rules: Iterable[str]) -> Cleaned:
    sizes = dict(store.db.execute("SELECT rule, count(*) FROM rows GROUP BY rule"))

    def under(rule: str | None) -> StoredFacts:
        return StoredFacts(store, _OF_RULE, (rule,), sizes.get(rule, 0))

    read = StoredFacts(store, _ALL_READ, (), sum(sizes.values()))
    return Cleaned(read, under(None), {rule: under(rule) for rule in rules})


def _sift(store: FactStore, judge: _Judge, query: str) -> Iterator[Fact]:
    """Drops the facts of a query that a judge names a rule for, and yields the others.

    A query in order of number never meets a row again, so that rows may be marked behind it.
    """
    for number, fact in store.select(query):
        rule = judge(fact)
        if rule is None:
            yield fact
        else:
            store.drop(rule, number)


# Sorted apart from the table, whose rows are marked meanwhile.
_REPEATED = """
SELECT * FROM facts
WHERE question IN (SELECT question FROM rows GROUP BY question HAVING count(*) > 1)
ORDER BY question, number
"""


def _identify(store: FactStore, active: Collection[str]) -> None:
    """Drops conflicting questions and merges rows until each id stands once."""
    for _, group in groupby(store.select(_REPEATED), key=lambda pair: pair[1].question):
        same = list(group)
        golds = {frozenset(map(normalise, row.accepted)) for _, row in same}
        if len(golds) > 1 and "conflicting_golds" in active:
            for number, _ in same:
                store.drop("conflicting_golds", number)
        else:
            _merge(store, same)


def _merge(store: FactStore, same: list[tuple[int, Fact]]) -> None:
    by_id: dict[str, list[tuple[int, Fact]]] = defaultdict(list)
    for number, row in sorted(same, key=lambda pair: _precedence(pair[1])):
        by_id[row.id].append((number, row))
    for (number, first), *others in by_id.values():
        for other, row in others:
            in_split = row.split == first.split
            store.drop("duplicates" if in_split else "several_splits", other)
        rows = [first, *(row for _, row in others)]
        answers = _union(row.answers for row in rows)
        names = _union(row.aliases for row in rows)
        aliases = tuple(name for name in names if name not in answers)
        told = (row.popularity for row in rows if row.popularity is not None)
        most = max(told, default=None)
        merged = replace(first, answers=answers, aliases=aliases, popularity=most)
        store.merge(number, merged)


def _precedence(row: Fact) -> tuple[Any, ...]:
    return FACT_SPLITS.index(row.split), row.answers, row.aliases


def _union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for items in lists for item in items))


_SHARED_TEMPLATES = """
UPDATE rows SET rule = 'shared_template' WHERE number IN (
    SELECT number FROM (
        SELECT number, rank(relation) > min(rank(relation)) OVER (
            PARTITION BY shape(relation, subject, question)
        ) AS late FROM rows WHERE rule IS NULL
    ) WHERE late
)
"""


def _drop_shared_templates(store: FactStore, active: Collection[str]) -> None:
    if "shared_template" in active:
        store.db.create_function("shape", 3, _shape, deterministic=True)
        store.db.create_function("rank", 1, _rank, deterministic=True)
        store.db.execute(_SHARED_TEMPLATES)


def _shape(relation: str, subject: str, question: str) -> str:
    """The question without its subject; a question that is its own subject has none."""
    if subject and subject != question:
        return question.replace(subject, "[X]", 1)
    return relation


def _rank(relation: str) -> str:
    """Sorts relations as people number them: P19 before P131."""
    digits = relation.removeprefix("P")
    number = str(int(digits)) if digits.isdecimal() else "0"
    return f"{len(number):04}{number}{relation}"


def _judge_alone(active: Collection[str]) -> _Judge:
    """Judges a fact by itself, whatever is trained on."""
    tests = [(rule.name, rule.test) for rule in RULES if rule.test and rule.name in active]
    return lambda fact: next((name for name, test in tests if test(fact)), None)


_LEAKS = dict.fromkeys(("id", "question", "subject"), "heldout_subject") | {
    "object": "heldout_object",
    "any_object": "heldout_any_object",
}


def _judge_by_training(active: Collection[str], index: TrainingIndex) -> _Judge:
    """Judges a held-out fact by what training facts give away."""
    return lambda fact: next(
        (rule for leak in index.leaks(fact) if (rule := _LEAKS[leak.kind]) in active), None
    )


def _judge_popularity(least: int) -> _Judge:
    """Judges a fact by its popularity; one that has none stays."""
    return lambda fact: (
        "min_popularity" if fact.popularity is not None and fact.popularity < least else None
    )


_OVER_LIMIT = """
UPDATE rows SET rule = 'limit' WHERE number IN (
    SELECT number FROM (
        SELECT number, row_number() OVER (PARTITION BY relation, split ORDER BY lot(id)) AS place
        FROM rows WHERE rule IS NULL
    ) WHERE place > ?
)
"""
