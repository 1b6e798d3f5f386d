"""A fact: one question with its accepted answers."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
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
        answers: Accepted answers; the first is the one that is trained on.
        split: One of `train`, `dev`, `test`.
    """

    id: str
    relation: str
    subject: str
    question: str
    answers: tuple[str, ...]
    split: str

    @classmethod
    def make(
        cls,
        relation: str,
        subject: str,
        question: str,
        answers: tuple[str, ...],
        split: str | None = None,
    ) -> Fact:
        """Builds a fact with its id; without a split, a hash of the subject decides."""
        identity = fact_id(relation, subject, question)
        return cls(identity, relation, subject, question, answers, split or split_of(subject))

    def row(self) -> dict[str, Any]:
        """Returns the fact as it stands in a JSON Lines file."""
        return {**asdict(self), "answers": list(self.answers)}


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
