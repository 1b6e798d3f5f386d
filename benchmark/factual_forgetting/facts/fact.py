"""A fact: one question with its accepted answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SPLITS = ("train", "dev", "test")
DEV_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Fact:
    """One question with its accepted answers.

    Attributes:
        id: Stable hash of relation, subject and question.
        relation: Name of the relation, for example `P17`.
        subject: The entity asked about, as it stands in the question.
        question: The question in natural language.
        answers: The golds, as the source has them; the first is the one that is trained on.
        split: One of `train`, `dev`, `test`.
        aliases: Other names of the golds, accepted as well unless scoring is strict.
        popularity: How many people live in the subject, or how often it is looked up; None
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
    ) -> Fact:
        """Builds a fact with its id; without a split, a hash of the subject decides."""
        identity = fact_id(relation, subject, question)
        place = split or split_of(subject)
        return cls(identity, relation, subject, question, answers, place, aliases, popularity)

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
        """Returns the fact as it stands in a JSON Lines file; what is unknown is left out."""
        told = {} if self.popularity is None else {"popularity": self.popularity}
        return {
            "id": self.id,
            "relation": self.relation,
            "subject": self.subject,
            "question": self.question,
            "answers": list(self.answers),
            "aliases": list(self.aliases),
            "split": self.split,
            **told,
        }


def fact_id(relation: str, subject: str, question: str) -> str:
    """Returns 16 hexadecimal digits that identify a fact wherever it is read from."""
    return stable_hash("fact", relation, subject, question)[:16]


def split_of(subject: str) -> str:
    """Assigns a subject to `train` or `dev`, all facts about it together."""
    return "dev" if stable_fraction("split", subject) < DEV_SHARE else "train"


def stable_hash(*parts: object) -> str:
    """Hashes the parts, independent of process, platform and Python's hash seed."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def stable_fraction(*parts: object) -> float:
    """Maps the parts to a reproducible number in [0, 1)."""
    return int(stable_hash(*parts)[:13], 16) / 16**13
