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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from factual_forgetting.errors import UserError
from factual_forgetting.facts.aliases import AliasTable, builtin_aliases
from factual_forgetting.facts.fact import SPLITS, Fact
from factual_forgetting.facts.leaks import TrainingIndex
from factual_forgetting.facts.matching import normalise

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
    Rule("short_subject", True, f"a subject of fewer than {SHORTEST_SUBJECT} characters"),
    Rule("answer_in_subject", True, "the subject shows the answer"),
    Rule("several_golds", False, "more than one gold"),
    Rule("heldout_subject", True, "a held-out subject is a training subject"),
    Rule("heldout_object", True, "a held-out subject is an answer of the (inverse) relation"),
    Rule("heldout_any_object", False, "a held-out subject is an answer in training"),
)


@dataclass(frozen=True)
class Cleaned:
    """The facts that rules left, and those that they took.

    Attributes:
        facts: Kept facts, each id once, ordered by relation and id.
        dropped: Rule to the rows that it dropped or merged, for every rule that was on.
    """

    facts: list[Fact]
    dropped: dict[str, list[Fact]]


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
) -> Cleaned:
    """Applies the rules to the rows of a source.

    Training facts win: of a question in several splits the first of train, dev, test stays,
    and held-out facts give way to training facts.

    Args:
        rows: Facts as read, ids may repeat; with their aliases.
        keep: Rules to turn off.
        drop: Optional rules to turn on.
        aliases: Names of one thing, to know a subject by; None for the built-in table.

    Raises:
        UserError: If there is no such rule.
    """
    active = active_rules(keep, drop)
    dropped: dict[str, list[Fact]] = {name: [] for name in active}
    facts = _identify(rows, dropped)
    facts = _sift(facts, _single_fact_tests(facts), dropped)
    facts = _sift(facts, _heldout_tests(facts, aliases), dropped)
    ordered = sorted(facts, key=lambda fact: (fact.relation, fact.id))
    return Cleaned(ordered, dropped)


_Test = Callable[[Fact], bool]


def _sift(facts: list[Fact], tests: dict[str, _Test], dropped: dict[str, list[Fact]]) -> list[Fact]:
    active = [(name, test) for name, test in tests.items() if name in dropped]
    kept: list[Fact] = []
    for fact in facts:
        rule = next((name for name, test in active if test(fact)), None)
        (kept if rule is None else dropped[rule]).append(fact)
    return kept


def _identify(rows: Iterable[Fact], dropped: dict[str, list[Fact]]) -> list[Fact]:
    """Drops conflicting questions and merges rows until each id stands once."""
    by_question: dict[str, list[Fact]] = defaultdict(list)
    for row in rows:
        by_question[row.question].append(row)
    facts = []
    for same in by_question.values():
        if len(same) == 1:
            facts += same
        elif "conflicting_golds" in dropped and _conflict(same):
            dropped["conflicting_golds"] += same
        else:
            facts += _merge(same, dropped)
    return facts


def _conflict(rows: list[Fact]) -> bool:
    return len({frozenset(map(normalise, row.accepted)) for row in rows}) > 1


def _merge(rows: list[Fact], dropped: dict[str, list[Fact]]) -> list[Fact]:
    by_id: dict[str, list[Fact]] = defaultdict(list)
    for row in rows:
        by_id[row.id].append(row)
    merged = []
    for same in by_id.values():
        same.sort(key=lambda row: (SPLITS.index(row.split), row.answers, row.aliases))
        first, *others = same
        split = first.split
        dropped["duplicates"] += [row for row in others if row.split == split]
        dropped["several_splits"] += [row for row in others if row.split != split]
        answers = _union(row.answers for row in same)
        names = _union(row.aliases for row in same)
        aliases = tuple(name for name in names if name not in answers)
        merged.append(replace(first, answers=answers, aliases=aliases))
    return merged


def _union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for items in lists for item in items))


def _single_fact_tests(facts: list[Fact]) -> dict[str, _Test]:
    first_to_ask: dict[str, tuple[int, str]] = {}
    for fact in facts:
        shape = _shape(fact)
        rank = _rank(fact.relation)
        first_to_ask[shape] = min(first_to_ask.get(shape, rank), rank)
    return {
        "shared_template": lambda fact: first_to_ask[_shape(fact)] < _rank(fact.relation),
        "template_misfit": template_misfit,
        "short_subject": short_subject,
        "answer_in_subject": answer_in_subject,
        "several_golds": lambda fact: len(fact.answers) > 1,
    }


def _shape(fact: Fact) -> str:
    """The question without its subject; a question that is its own subject has none."""
    if fact.subject and fact.subject != fact.question:
        return fact.question.replace(fact.subject, "[X]", 1)
    return fact.relation


def _rank(relation: str) -> tuple[int, str]:
    """Orders relations as people number them: P19 before P131."""
    digits = relation.removeprefix("P")
    return (int(digits) if digits.isdecimal() else 0, relation)


def template_misfit(fact: Fact) -> bool:
    """Tells whether a question about music (P136) is asked of a film, a game, a book or a picture.

    EntityQuestions asks "What type of music does [X] play?" of everything that has a genre.
    The words of the golds decide, which is a heuristic.
    """
    return "type of music" in fact.question and any(map(_is_not_music, fact.answers))


def _is_not_music(genre: str) -> bool:
    words = normalise(genre)
    return bool(_NOT_MUSIC.search(words)) and not _MUSIC.search(words)


def short_subject(fact: Fact) -> bool:
    """Tells whether a subject says too little; a wide character (Chinese, Kana) counts twice."""
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


def _heldout_tests(facts: list[Fact], aliases: AliasTable | None) -> dict[str, _Test]:
    table = aliases or builtin_aliases()
    index = TrainingIndex((fact for fact in facts if fact.split == "train"), table)

    def leaks(*kinds: str) -> _Test:
        def test(fact: Fact) -> bool:
            return fact.split != "train" and any(leak.kind in kinds for leak in index.leaks(fact))

        return test

    return {
        "heldout_subject": leaks("id", "question", "subject"),
        "heldout_object": leaks("object"),
        "heldout_any_object": leaks("any_object"),
    }
