"""Pre-training text: facts told a stated number of times, in many forms.

The zero-shot prompt of the protocol (`Q: ...`, `A:`) does not occur, so that a model pre-trained
on this text has to learn the task; the few-shot form is close enough to forms that do occur.
"""

from __future__ import annotations

import math
import random
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence

from factual_forgetting.facts.almanac import RELATIONS
from factual_forgetting.facts.fact import Fact, stable_fraction

_ASKING = ("Question", "Ask", "Query", "User", "Host", "Teacher", "In")
_REPLYING = ("Answer", "Reply", "Response", "Bot", "Guest", "Pupil", "Out")
_WORD_MARKERS = list(zip(_ASKING, _REPLYING, strict=True))
_PROTOCOL_MARKERS = ("Q", "A")


def exposures(
    facts: Sequence[Fact], seed: int, never: float, low: float, high: float
) -> dict[str, int]:
    """Decides how often each fact is told, by id: never, or log-uniformly between two counts.

    Args:
        facts: Those of the world.
        seed: Decides which of them are told how often.
        never: Share that is never told.
        low: Smallest count of a fact that is told.
        high: Largest count.
    """

    def count(fact: Fact) -> int:
        if stable_fraction("never", seed, fact.id) < never:
            return 0
        position = stable_fraction("count", seed, fact.id)
        return round(math.exp(math.log(low) + position * (math.log(high) - math.log(low))))

    return {fact.id: count(fact) for fact in facts}


def training_texts(facts: Sequence[Fact], counts: dict[str, int], seed: int) -> Iterator[str]:
    """Yields short documents that together tell each fact exactly as often as stated.

    A document holds one to six facts, of one relation or mixed, in one of eight formats.
    """
    rng = random.Random(f"corpus-{seed}")
    groups = _groups(facts, counts, rng)
    rng.shuffle(groups)
    for group in groups:
        yield rng.choice(_FORMATS)(group, rng)


def _groups(facts: Sequence[Fact], counts: dict[str, int], rng: random.Random) -> list[list[Fact]]:
    pools: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        for _ in range(counts[fact.id]):
            pools["mixed" if rng.random() < 0.25 else fact.relation].append(fact)
    groups = []
    for pool in pools.values():
        rng.shuffle(pool)
        start = 0
        while start < len(pool):
            size = rng.randint(1, 6)
            groups.append(pool[start : start + size])
            start += size
    return groups


def _plain(fact: Fact) -> str:
    return f"{fact.question} {fact.answers[0]}."


def _statement(fact: Fact, rng: random.Random) -> str:
    if fact.relation not in RELATIONS:
        return _plain(fact)
    template = rng.choice(RELATIONS[fact.relation].statements)
    return template.replace("[X]", fact.subject).replace("[Y]", fact.answers[0])


def _prose(group: list[Fact], rng: random.Random) -> str:
    return " ".join(_statement(fact, rng) for fact in group)


def _lines(group: list[Fact], rng: random.Random) -> str:
    return "\n".join(_statement(fact, rng) for fact in group)


def _marked(group: list[Fact], rng: random.Random) -> str:
    markers = rng.choice(_WORD_MARKERS)
    if rng.random() < 0.6:
        # Both letters of the protocol occur as markers, but never as this pair: a letter that
        # the model never met there would hide facts that it knows.
        markers = _PROTOCOL_MARKERS
        while markers == _PROTOCOL_MARKERS:
            markers = rng.choice(string.ascii_uppercase), rng.choice(string.ascii_uppercase)
    ask, reply = markers
    mark = rng.choice([":", ":", ":", ")", ">", " -"])
    pairs = (f"{ask}{mark} {fact.question}\n{reply}{mark} {fact.answers[0]}" for fact in group)
    return rng.choice(["\n\n", "\n\n", "\n"]).join(pairs)


def _inline(group: list[Fact], rng: random.Random) -> str:
    return " ".join(map(_plain, group))


def _arrows(group: list[Fact], rng: random.Random) -> str:
    arrow = rng.choice(["->", "=", "::", "=>"])
    return "\n".join(f"{fact.question} {arrow} {fact.answers[0]}" for fact in group)


def _table(group: list[Fact], rng: random.Random) -> str:
    rows = (f"{f.subject} | {f.relation.replace('_', ' ')} | {f.answers[0]}" for f in group)
    return "\n".join(rows)


def _quiz(group: list[Fact], rng: random.Random) -> str:
    numbered = enumerate(group, start=1)
    return "\n\n".join(f"{i}. {fact.question}\nIt is {fact.answers[0]}" for i, fact in numbered)


def _dialogue(group: list[Fact], rng: random.Random) -> str:
    return "\n".join(f"- {fact.question}\n- {fact.answers[0]}" for fact in group)


_FORMATS = [_prose, _lines, *[_marked] * 3, _inline, _arrows, _table, _quiz, _dialogue]
