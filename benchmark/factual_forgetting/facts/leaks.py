"""Leaks: what held-out facts share with the facts that are trained on.

A held-out fact measures forgetting only if training never touched it, so neither its question
nor its subject may occur in training, however they are written, nor may its mirror image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from factual_forgetting.facts.aliases import AliasTable, builtin_aliases
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import normalise

# Pairs of relations that say the same with subject and object exchanged, by Wikidata property
# and by PopQA's and the almanac's names. A notable work (P800) mirrors who made it.
_INVERSE_PAIRS = (
    (("P26", "spouse"), ("P26", "spouse")),
    (("P40", "child"), ("P22", "P25", "father", "mother")),
    (("P36", "capital"), ("P1376", "capital_of")),
    (("P50", "P170", "P175", "author", "performer"), ("P800",)),
    (("P127",), ("P1830",)),
    (("P131",), ("P150",)),
)


def _inverses() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for some, others in _INVERSE_PAIRS:
        for relation in some:
            found[relation].update(others)
        for relation in others:
            found[relation].update(some)
    return found


_INVERSES = _inverses()


@dataclass(frozen=True, slots=True)
class Leak:
    """One way in which a held-out fact stands in the training data.

    Attributes:
        kind: `id`, `question`, `subject`, `object` (the subject is an answer in training, in
            the same or the inverse relation) or `any_object` (in any relation).
        heldout: Id of the held-out fact.
        train: Id of a training fact that gives it away.
        text: What they share, as the held-out fact writes it.
    """

    kind: str
    heldout: str
    train: str
    text: str


class TrainingIndex:
    """What training facts say, in normal form, to look held-out facts up in.

    Args:
        facts: The facts trained on.
        aliases: Names of one thing; None for the built-in table.
    """

    def __init__(self, facts: Iterable[Fact], aliases: AliasTable | None = None) -> None:
        self._aliases = aliases or builtin_aliases()
        self._ids: dict[str, str] = {}
        self._questions: dict[str, str] = {}
        self._subjects: dict[str, str] = {}
        self._objects: dict[str, dict[str, str]] = {}
        for fact in facts:
            self._ids.setdefault(fact.id, fact.id)
            self._questions.setdefault(normalise(fact.question), fact.id)
            self._subjects.setdefault(normalise(fact.subject), fact.id)
            objects = self._objects.setdefault(fact.relation, {})
            for answer in fact.accepted:
                objects.setdefault(normalise(answer), fact.id)

    def leaks(self, fact: Fact) -> Iterator[Leak]:
        """Yields at most one leak of each kind."""
        forms = sorted(self._aliases.forms(fact.subject))
        related = sorted({fact.relation, *_INVERSES.get(fact.relation, ())})
        places = {
            "id": ([fact.id], [self._ids]),
            "question": ([normalise(fact.question)], [self._questions]),
            "subject": (forms, [self._subjects]),
            "object": (forms, [self._objects.get(name, {}) for name in related]),
            "any_object": (forms, list(self._objects.values())),
        }
        for kind, (keys, indices) in places.items():
            for train in (index[key] for index in indices for key in keys if key in index):
                text = fact.question if kind in {"id", "question"} else fact.subject
                yield Leak(kind, fact.id, train, text)
                break


def find_leaks(
    train: Iterable[Fact], heldout: Iterable[Fact], aliases: AliasTable | None = None
) -> list[Leak]:
    """Finds what held-out facts share with training facts.

    Case, accents, punctuation, articles, white space, Unicode form and known aliases make no
    difference. Objects of unrelated relations don't count as leaks.

    Args:
        train: Facts whose text is trained on.
        heldout: Facts that must be untouched by training.
        aliases: Names of one thing; None for the built-in table.

    Returns:
        One leak for each held-out fact and kind, in the order of `heldout`.
    """
    index = TrainingIndex(train, aliases)
    return [leak for fact in heldout for leak in index.leaks(fact) if leak.kind != "any_object"]
