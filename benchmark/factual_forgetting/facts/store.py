"""Facts on disk, each with its fate: memory stays flat however many a source has."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from factual_forgetting.errors import InputError, reason_of
from factual_forgetting.facts.fact import Fact

# `told` has golds, aliases, popularity and domain as read, `merged` those of all rows that a kept
# one stands for.
_ROWS = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY,
    id TEXT, relation TEXT, subject TEXT, question TEXT, split TEXT, told TEXT,
    merged TEXT, rule TEXT
);
CREATE VIEW facts AS
    SELECT number, id, relation, subject, question, split, coalesce(merged, told), rule FROM rows;
"""
_INSERT = """
INSERT INTO rows (id, relation, subject, question, split, told) VALUES (?, ?, ?, ?, ?, ?)
"""
_KIBIBYTES = 8 << 10
# What json.loads calls once it has looked for white space, which isn't here.
_decode = json.JSONDecoder().raw_decode


class _Scratch(sqlite3.Connection):
    """A database in a file without a name, which is gone when nobody holds the database."""

    def __del__(self) -> None:
        self.close()


def scratch(schema: str) -> sqlite3.Connection:
    """Opens an empty database; it keeps 8 MiB in memory and the rest in the temporary folder."""
    # An iterator that was left unfinished may be collected by another thread.
    db = sqlite3.connect("", factory=_Scratch, check_same_thread=False)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute(f"PRAGMA cache_size = -{_KIBIBYTES}")
    db.executescript(schema)
    return db


@contextmanager
def enough_room() -> Iterator[None]:
    """Tells a user whose disk is full how to go on."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(
            f"The temporary folder can't take the facts ({reason_of(error)}). "
            "Set SQLITE_TMPDIR to a folder with more room."
        ) from None


class FactStore:
    """The rows of a source in a table that cleaning marks.

    `rows` has a number in the order of reading for each, and `rule`, the rule that dropped it,
    null while it is kept; `facts` shows the same with merged golds and aliases.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Stores facts as read, whose ids may repeat."""
        self.db = scratch(_ROWS)
        self.db.executemany(_INSERT, map(_cells, facts))

    def select(self, query: str, *values: Any) -> Iterator[tuple[int, Fact]]:
        """Yields number and fact of the rows that a query finds in `rows` or `facts`."""
        for cells in self.db.execute(query, values):
            number, key, relation, subject, question, split, told = cells[:7]
            (golds, aliases, *others), _ = _decode(told)
            names = tuple(golds), split, tuple(aliases)
            yield number, Fact(key, relation, subject, question, *names, *others)

    def drop(self, rule: str, number: int) -> None:
        """Marks a row as dropped by a rule."""
        self.db.execute("UPDATE rows SET rule = ? WHERE number = ?", (rule, number))

    def merge(self, number: int, fact: Fact) -> None:
        """Lets a row stand for others, with the golds and aliases of all."""
        *_, told = _cells(fact)
        self.db.execute("UPDATE rows SET merged = ? WHERE number = ?", (told, number))


def _cells(fact: Fact) -> tuple[str, ...]:
    told = json.dumps((fact.answers, fact.aliases, fact.popularity, fact.domain))
    return fact.id, fact.relation, fact.subject, fact.question, fact.split, told


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """Facts of a store, ordered by relation and id; each iteration reads them anew."""

    store: FactStore
    query: str
    values: tuple[str | None, ...]
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Fact]:
        with enough_room():
            for _, fact in self.store.select(self.query, *self.values):
                yield fact
