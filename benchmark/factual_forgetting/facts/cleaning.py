"""Cleaning: named rules that drop or merge facts which would measure something else.

Rules stand in stages. Every rule of a stage judges what the stage before left, and only by
what is there, never by its order; a rule that sees less drops no more. So the order of rows
doesn't matter, nor the order of rules within a stage, and cleaning twice changes nothing.
A dropped row is counted once, under the first rule in `RULES` that drops it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from factual_forgetting.errors import UserError
from factual_forgetting.facts.aliases import AliasTable
from factual_forgetting.facts.fact import SPLITS, Fact, stable_hash
from factual_forgetting.facts.leaks import TrainingIndex
from factual_forgetting.facts.matching import normalise
from factual_forgetting.facts.store import FactStore, StoredFacts, enough_room

SHORTEST_SUBJECT = 3
_SHORTEST_ALIAS = 3
_APOSTROPHES = str.maketrans("'’", "  ")

# What isn't music among genres, unless the last word says that it is ("film score").
_NOT_MUSIC = re.compile(
    r"\b(?:films?|movies?|cinema|blaxploitation|exploitation|noir|giallo|mockbuster|bollywood"
    r"|television|sitcom|telenovela|series|miniseries|(?:soap|space) opera|anime|manga|seinen"
    r"|gekiga|yaoi|yuri|hentai|eroge|tokusatsu|comics?|games?|gaming|gamebook|shooter"
    r"|shoot em up|roguelike|simulator|simulation|sim|tactics|strategy|pinball|tower defense"
    r"|arena|4x|fiction|novels?|novella|novelization|literature|lit|stor(?:y|ies)|tales?|fable"
    r"|sonnet|poem|poetry|verse|prose|memoir|essay|encyclopedia|anthology|magazine|atlas|book"
    r"|cookbook|biography|satire|farce|parody|comedy|drama|docudrama|melodrama|tragedy"
    r"|thriller|horror|mystery|fantasy|romance|western|documentary|mockumentary|docufiction"
    r"|procedural|adventure|pornograph(?:y|ic)|propaganda|art|painting|portrait|statue"
    r"|sculpture|still life|veduta|photography|altarpiece|calligraphy|animation|graphics"
    r"|bildungsroman|magical girl|wuxia|theatre|play|philosophy|football|wrestling|cyberpunk"
    r"|magic realism|alternate history|criticism|journalism|religious text|coming of age)\b"
)
_MUSIC = re.compile(
    r"\b(?:music|rock|metal|pop|punk|jazz|hop|blues|folk|swing|song|score|(?<!soap )"
    r"(?<!space )opera)$"
)


# A part of a place ("Lyon 02", "Zürich (Kreis 9)") or several ("Biel/Bienne").
_PLACE_RELATIONS = ("country", "state")
_ODD_NAME = re.compile(r"[\d()/,–]")


@dataclass(frozen=True)
class Rule:
    """One rule of cleaning.

    Attributes:
        name: What `--keep` and `--drop` call it.
        on: Whether it applies unless asked otherwise.
        fixed: Whether it can't be turned off, because an id stands for one fact.
        reason: What is wrong with the facts that it drops, for people.
    """

    name: str
    on: bool
    reason: str
    fixed: bool = False


RULES = (
    Rule("duplicates", True, "the same row again in its split, merged", fixed=True),
    Rule("conflicting_golds", True, "the same question with other golds"),
    Rule("several_splits", True, "the same question in an earlier split, merged", fixed=True),
    Rule("shared_template", True, "another relation asks in the same words"),
    Rule("template_misfit", True, "the question doesn't fit the gold's kind"),
    Rule("odd_name", True, "a place's name with digits, brackets, slashes, commas or dashes"),
    Rule("short_subject", True, f"a subject of fewer than {SHORTEST_SUBJECT} characters"),
    Rule("answer_in_subject", True, "the subject shows the answer"),
    Rule("several_golds", False, "more than one gold"),
    Rule("heldout_subject", True, "a held-out subject is a training subject"),
    Rule("heldout_object", True, "a held-out subject is an answer of the (inverse) relation"),
    Rule("heldout_any_object", False, "a held-out subject is an answer in training"),
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
    """Returns the names of the rules that apply.

    Args:
        keep: Rules to turn off.
        drop: Rules to turn on that are off by default.

    Raises:
        UserError: If a name is unknown, or a rule can't be turned off.
    """
    keep, drop = set(keep), set(drop)
    unknown = sorted((keep | drop) - {rule.name for rule in RULES})
    if unknown:
        names = ", ".join(rule.name for rule in RULES)
        raise UserError(f"No cleaning rule {', '.join(unknown)}. The rules are: {names}.")
    fixed = sorted(keep & {rule.name for rule in RULES if rule.fixed})
    if fixed:
        raise UserError(
            f"--keep {' '.join(fixed)} is impossible: an id stands for one fact. Leave it out."
        )
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
        limit: At most this many facts of each relation and split are left, the others stand
            under `limit`.
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
            _limit(store, limit, seed)
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
        same = dict(group)
        if "conflicting_golds" in active and _conflict(same.values()):
            for number in same:
                store.drop("conflicting_golds", number)
        else:
            _merge(store, same)


def _conflict(rows: Iterable[Fact]) -> bool:
    return len({frozenset(map(normalise, row.accepted)) for row in rows}) > 1


def _merge(store: FactStore, rows: dict[int, Fact]) -> None:
    by_id: dict[str, list[int]] = defaultdict(list)
    for number, row in rows.items():
        by_id[row.id].append(number)
    for numbers in by_id.values():
        numbers.sort(key=lambda number: _precedence(rows[number]))
        first, *others = numbers
        for other in others:
            in_split = rows[other].split == rows[first].split
            store.drop("duplicates" if in_split else "several_splits", other)
        answers = _union(rows[number].answers for number in numbers)
        names = _union(rows[number].aliases for number in numbers)
        aliases = tuple(name for name in names if name not in answers)
        known = [people for n in numbers if (people := rows[n].popularity) is not None]
        merged = replace(rows[first], answers=answers, aliases=aliases)
        store.merge(first, replace(merged, popularity=max(known, default=None)))


def _precedence(row: Fact) -> tuple[Any, ...]:
    return SPLITS.index(row.split), row.answers, row.aliases


def _union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for items in lists for item in items))


_SHARED_TEMPLATES = """
WITH asking AS (
    SELECT DISTINCT shape(relation, subject, question) AS shape, relation
    FROM rows WHERE rule IS NULL
), ranked AS (
    SELECT *, rank(relation) > min(rank(relation)) OVER (PARTITION BY shape) AS late FROM asking
)
UPDATE rows SET rule = 'shared_template'
WHERE rule IS NULL AND (shape(relation, subject, question), relation) IN (
    SELECT shape, relation FROM ranked WHERE late
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
    tests: dict[str, Callable[[Fact], bool]] = {
        "template_misfit": template_misfit,
        "odd_name": odd_name,
        "short_subject": short_subject,
        "answer_in_subject": answer_in_subject,
        "several_golds": lambda fact: len(fact.answers) > 1,
    }
    rules = [(name, test) for name, test in tests.items() if name in active]
    return lambda fact: next((name for name, test in rules if test(fact)), None)


def template_misfit(fact: Fact) -> bool:
    """Tells whether a question about music (P136) is asked of a film, a game, a book or a picture.

    EntityQuestions asks "What type of music does [X] play?" of everything that has a genre.
    The words of the golds decide, which is a heuristic.
    """
    return "type of music" in fact.question and any(map(_is_not_music, fact.answers))


def _is_not_music(genre: str) -> bool:
    words = normalise(genre)
    return bool(_NOT_MUSIC.search(words)) and not _MUSIC.search(words)


def odd_name(fact: Fact) -> bool:
    """Tells whether a place is asked about that is a part of one, or has several names.

    "Which country is Lyon 02 located in?" and its like, as gazetteers list them.
    """
    asked = fact.relation in _PLACE_RELATIONS and fact.question.startswith("Which ")
    return asked and bool(_ODD_NAME.search(fact.subject))


def short_subject(fact: Fact) -> bool:
    """Tells whether a subject says too little; a wide character (Chinese, Kana) counts twice."""
    if len(fact.subject) >= SHORTEST_SUBJECT:
        return False
    width = sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in fact.subject)
    return width < SHORTEST_SUBJECT


def answer_in_subject(fact: Fact) -> bool:
    """Tells whether an accepted answer stands in the subject, as whole words in normal form.

    An apostrophe may end the word ("Rembrandt's Mother"). Aliases of one or two letters don't
    count: "us" is a word.
    """
    split = fact.subject.translate(_APOSTROPHES)
    subject = f" {normalise(fact.subject)} | {normalise(split)} "
    golds = (normalise(answer) for answer in fact.answers)
    names = (normalise(alias) for alias in fact.aliases)
    return any(f" {gold} " in subject for gold in golds) or any(
        len(name) >= _SHORTEST_ALIAS and f" {name} " in subject for name in names
    )


_LEAKS = {
    "id": "heldout_subject",
    "question": "heldout_subject",
    "subject": "heldout_subject",
    "object": "heldout_object",
    "any_object": "heldout_any_object",
}


def _judge_by_training(active: Collection[str], index: TrainingIndex) -> _Judge:
    """Judges a held-out fact by what training facts give away."""

    def judge(fact: Fact) -> str | None:
        rules = (_LEAKS[leak.kind] for leak in index.leaks(fact))
        return next((rule for rule in rules if rule in active), None)

    return judge


def _judge_popularity(least: int) -> _Judge:
    def judge(fact: Fact) -> str | None:
        unpopular = fact.popularity is not None and fact.popularity < least
        return "min_popularity" if unpopular else None

    return judge


_OVER_LIMIT = """
UPDATE rows SET rule = 'limit' WHERE number IN (
    SELECT number FROM (
        SELECT number, row_number() OVER (PARTITION BY relation, split ORDER BY lot(id)) AS place
        FROM rows WHERE rule IS NULL
    ) WHERE place > ?
)
"""


def _limit(store: FactStore, limit: int, seed: int) -> None:
    store.db.create_function("lot", 1, lambda identity: stable_hash("limit", seed, identity))
    store.db.execute(_OVER_LIMIT, (limit,))
