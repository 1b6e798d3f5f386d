"""Leaks: what held-out facts share with the facts that are trained on.

A held-out fact measures forgetting only if training never touched it, so neither its question
nor its subject may occur in training, however they are written, nor may its mirror image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, product

from factual_forgetting.facts.aliases import AliasTable, builtin_aliases
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import normalise
from factual_forgetting.facts.store import scratch

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
_INVERSES: dict[str, set[str]] = defaultdict(set)
for _pair in _INVERSE_PAIRS:
    for _one, _other in chain(product(*_pair), product(*reversed(_pair))):
        _INVERSES[_one].add(_other)

# The index is sorted at the end: entries put in place one by one would lie all over the disk.
_SAID = "CREATE TABLE said (kind TEXT, text TEXT, relation TEXT, id TEXT)"
_INDEX = "CREATE INDEX by_text ON said (text, kind, relation)"
_INSERT = "INSERT INTO said VALUES (?, ?, ?, ?)"
_FIND = "SELECT id FROM said WHERE text = ? AND kind = ? LIMIT 1"
_FIND_OF_RELATION = "SELECT id FROM said WHERE text = ? AND kind = ? AND relation = ? LIMIT 1"


@dataclass(frozen=True, slots=True)
class Leak:
    """One way in which a held-out fact stands in the training data.

    Attributes:
        kind: `id`, `question`, `subject`, `object` (the subject is an answer in training, in
            the same or the inverse relation) or `any_object` (in any relation).
        heldout: Id of the held-out fact.
        train: Id of a training fact that gives it away.
    """

    kind: str
    heldout: str
    train: str


class TrainingIndex:
    """What training facts say, in normal form, to look held-out facts up in."""

    def __init__(self, facts: Iterable[Fact], aliases: AliasTable | None = None) -> None:
        """Reads the facts trained on; `aliases` None is the built-in table."""
        self._aliases = aliases or builtin_aliases()
        self._db = scratch(_SAID)
        self._db.executemany(_INSERT, (row for fact in facts for row in _said(fact)))
        self._db.execute(_INDEX)

    def leaks(self, fact: Fact) -> Iterator[Leak]:
        """Yields at most one leak of each kind; of the facts that say the same, the first."""
        forms = sorted(self._aliases.forms(fact.subject))
        related = sorted({fact.relation, *_INVERSES.get(fact.relation, ())})
        looked_up: dict[str, list[tuple[str, ...]]] = {
            "id": [(fact.id, "id")],
            "question": [(normalise(fact.question), "question")],
            "subject": [(form, "subject") for form in forms],
            "object": [(form, "object", relation) for relation in related for form in forms],
            "any_object": [(form, "object") for form in forms],
        }
        for kind, keys in looked_up.items():
            find = _FIND_OF_RELATION if kind == "object" else _FIND
            found = chain.from_iterable(self._db.execute(find, key) for key in keys)
            for (train,) in islice(found, 1):
                yield Leak(kind, fact.id, train)


def _said(fact: Fact) -> Iterator[tuple[str, ...]]:
    """Yields kind, text in normal form, relation and id of all that a training fact says."""
    yield "id", fact.id, fact.relation, fact.id
    yield "question", normalise(fact.question), fact.relation, fact.id
    yield "subject", normalise(fact.subject), fact.relation, fact.id
    for name in fact.accepted:
        yield "object", normalise(name), fact.relation, fact.id


def find_leaks(
    train: Iterable[Fact], heldout: Iterable[Fact], aliases: AliasTable | None = None
) -> list[Leak]:
    """Finds what held-out facts share with training facts: one leak a fact and kind, in order.

    Case, accents, punctuation, articles, white space, Unicode form and known aliases make no
    difference. Objects of unrelated relations don't count as leaks.

    Args:
        train: Facts whose text is trained on.
        heldout: Facts that must be untouched by training.
        aliases: Names of one thing; None for the built-in table.
    """
    index = TrainingIndex(train, aliases)
    return [leak for fact in heldout for leak in index.leaks(fact) if leak.kind != "any_object"]
