"""A fact: one question with its accepted answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

FACT_SPLITS = ("train", "dev", "test")
_DEV_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Fact:
    """One question with its accepted answers.

    Attributes:
        id: 16 hexadecimal digits of a hash of relation, subject and question, whatever the source.
        relation: Name of the relation, for example `P17`.
        subject: The entity asked about, as it stands in the question.
        question: The question in natural language.
        answers: The golds, as the source has them; the first is the one that is trained on.
        split: One of `train`, `dev`, `test`.
        aliases: Other names of the golds, accepted as well unless scoring is strict.
        popularity: How many people live in the subject, or how often it is looked up; None
            where the source doesn't tell.
        domain: What the fact is about, in the words of its source: reports group by it. None
            where the source doesn't tell.
    """

    id: str
    relation: str
    subject: str
    question: str
    answers: tuple[str, ...]
    split: str
    aliases: tuple[str, ...] = ()
    popularity: int | None = None
    domain: str | None = None

    @classmethod
    def make(
        cls,
        relation: str,
        subject: str,
        question: str,
        answers: tuple[str, ...],
        split: str | None = None,
        aliases: tuple[str, ...] = (),
        popularity: int | None = None,
        domain: str | None = None,
    ) -> Fact:
        """Builds a fact with its id; without a split, all facts of a subject go to one by hash."""
        identity = stable_hash("fact", relation, subject, question)[:16]
        if not split:
            split = "dev" if stable_fraction("split", subject) < _DEV_SHARE else "train"
        told = (popularity, domain)
        return cls(identity, relation, subject, question, answers, split, aliases, *told)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Fact:
        """Rebuilds a fact from the row that `row` gave; the row is trusted to be one."""
        lists = {key: tuple(row[key]) for key in ("answers", "aliases")}
        return cls(**{**row, **lists})

    @property
    def accepted(self) -> tuple[str, ...]:
        """Golds and aliases: every answer that counts as right in alias accuracy."""
        return self.answers + self.aliases

    def row(self) -> dict[str, Any]:
        """Returns the fact as it stands in a JSON Lines file; what is None is left out."""
        told = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in told if value is not None}


def stable_hash(*parts: object) -> str:
    """Hashes the parts, independent of process, platform and Python's hash seed."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def stable_fraction(*parts: object) -> float:
    """Maps the parts to a reproducible number in [0, 1)."""
    return int(stable_hash(*parts)[:13], 16) / 16**13
