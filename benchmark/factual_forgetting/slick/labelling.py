"""SLiCK's labels: what they rest on, what they mean, and how they are read.

Source: Gekhman et al. 2024 (arXiv 2405.05904) section 2; Kaplan et al. 2026 (arXiv 2604.15574)
section 2.1 with 20 greedy runs and 3 exemplars. Greedy runs give three categories; WeaklyKnown
exists only with sampled runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    StringConstraints,
    field_validator,
    model_serializer,
)

from factual_forgetting import files
from factual_forgetting.config import Config, Share, Told, parse
from factual_forgetting.engines.prompts import MAX_NEW_TOKENS
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact


class Category(StrEnum):
    """How well a base knows a fact, the best first."""

    HIGHLY_KNOWN = "HighlyKnown"
    MAYBE_KNOWN = "MaybeKnown"
    WEAKLY_KNOWN = "WeaklyKnown"
    UNKNOWN = "Unknown"

    @classmethod
    def of(cls, correct: str, sampled: tuple[int, int] | None = None) -> Category:
        """Returns the category of a question's outcomes, told as in a `Label`."""
        if "0" not in correct:
            return cls.HIGHLY_KNOWN
        if "1" in correct:
            return cls.MAYBE_KNOWN
        return cls.WEAKLY_KNOWN if sampled and sampled[0] else cls.UNKNOWN


ZERO_SHOT, FRESH = "zero_shot", "fresh"
NOT_ASKED = "-"
LABELS_FILE, FACTS_FILE, EXEMPLARS_FILE = "labels.jsonl", "facts.jsonl", "exemplars.jsonl"
LABELS_MANIFEST, SOURCE_FILE, PARTS = "manifest.json", "source.json", "parts"
# What a quota counts, by the name of a bundle's size: a category, and the split of the facts.
QUOTAS = {
    "known": (Category.HIGHLY_KNOWN, "train"),
    "unknown": (Category.UNKNOWN, "train"),
    "heldout": (Category.HIGHLY_KNOWN, "dev"),
    "validation": (Category.HIGHLY_KNOWN, "train"),
    "replay": (Category.HIGHLY_KNOWN, "train"),
}
# What a bundle draws beside D_Known from the same facts, and how many unless told otherwise.
SPARE = {"validation": 500, "replay": 500}
_MIN_HIGHLY_KNOWN = 0.3
MOST_RUNS = 10_000  # Runs, exemplars, answers: beyond it a labelling would never end.


class SlickConfig(Config):
    """Settings that decide labels.

    Attributes:
        runs: Few-shot configurations a relation.
        shots: Exemplars in each.
        seed: Decides which facts become exemplars, and the order of the questions.
        max_new_tokens: Most tokens of an answer.
        exemplars: Whether a relation's questions share their exemplars in each run, or every
            question draws its own (Kaplan et al. 2026), which no prefix can be shared over.
        retire: Whether a question is asked no more after one right and one wrong answer: it
            is MaybeKnown, whatever the other runs would say.
        quota: Sizes of the bundle that is wanted, by the names of `QUOTAS`. Questions are taken
            in a random order that the seed fixes until it can be drawn; needs `retire`.
        min_highly_known: Share of HighlyKnown training facts that a relation must reach to count
            for the quota.
        samples: Random answers a run for questions with no right greedy one (Gekhman et al.
            2024: 16); 0 for none, and then WeaklyKnown counts as Unknown.
        temperature: Of random answers.
        top_k: Tokens that they are drawn from.
        shard_size: Questions of a relation that are asked together, about.
    """

    runs: int = Field(default=20, ge=1, le=MOST_RUNS)
    shots: int = Field(default=3, ge=1, le=MOST_RUNS)
    seed: int = 0
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1, le=MOST_RUNS)
    exemplars: Literal["relation", "question"] = "relation"
    retire: bool = False
    quota: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    min_highly_known: Share = _MIN_HIGHLY_KNOWN
    samples: int = Field(default=0, ge=0, le=MOST_RUNS)
    temperature: float = Field(default=0.5, gt=0)
    top_k: int = Field(default=40, ge=1)
    shard_size: int = Field(default=512, ge=1)

    @model_serializer(mode="wrap")
    def _as_ever(self, plainly: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Labellings from before a setting was there have its default, and name it not."""
        told = dict(plainly(self))
        if self.min_highly_known == _MIN_HIGHLY_KNOWN:
            del told["min_highly_known"]
        return told

    @field_validator("quota")
    @classmethod
    def _known_quota(cls, quota: dict[str, int]) -> dict[str, int]:
        if unknown := sorted(set(quota) - set(QUOTAS)):
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(QUOTAS)}")
        return quota


Marks = Annotated[str, StringConstraints(pattern=r"^[01-]+$")]


class Outcomes(Config, strict=True):
    """The base's outcome in the scoring prompts."""

    zero_shot: bool
    fresh: bool


class BaseTold(Told):
    """What a manifest must say of the base, as `checkpoint.describe_base` does."""

    pretrained: str | None
    revision: str | None = None
    weights_sha256: str | None = None
    shape: dict[str, Any] | None = None
    lineage: str | None = None
    adapter: str | None = None
    model: str | None = None
    model_args: dict[str, Any] | None = None


class SourceTold(Told):
    """What a labelling and a bundle say of where their facts are from."""

    facts: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)


class _Manifest(Told):
    """What the manifest of a labelling must say."""

    base: BaseTold
    engine: str
    settings: dict[str, Any]
    matcher: str
    files: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_.]+$")], str]


class _Row(Config, strict=True):
    """A line of `labels.jsonl`."""

    id: str
    correct: Marks
    category: Annotated[Category, Strict(False)]
    base: Outcomes | Annotated[dict[str, Any], Field(max_length=0)]
    margin: float | None
    sampled: Annotated[list[int], Field(min_length=2, max_length=2)] | None


class _Exemplars(Config, strict=True):
    """A line of `exemplars.jsonl`."""

    relation: str
    run: int | str
    facts: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Label:
    """What a base knows of one fact.

    Attributes:
        fact: The fact.
        correct: One character a labelling run: `1` right, `0` wrong, `-` not asked.
        category: How well the base knows it.
        base: The base's outcome in the scoring prompts, `zero_shot` and `fresh`; empty for a
            retired question.
        margin: Smallest logit margin over the labelling runs; None if the engine has none.
        sampled: Right ones among random answers, and their number; None where none were drawn.
    """

    fact: Fact
    correct: str
    category: Category
    base: dict[str, bool]
    margin: float | None
    sampled: tuple[int, int] | None = None

    def row(self) -> dict[str, Any]:
        """Returns the label as it stands in `labels.jsonl`."""
        told = ("correct", "category", "base", "margin", "sampled")
        return {"id": self.fact.id, **{name: getattr(self, name) for name in told}}


@dataclass(frozen=True, slots=True)
class Labels:
    """A finished labelling: labels, exemplars by relation, the manifest, and the source."""

    labels: list[Label]
    exemplars: dict[str, list[Fact]]
    manifest: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)


def load_labels(path: Path) -> Labels:
    """Loads a finished labelling, each file checked against the manifest.

    Raises:
        UserError: If it is unfinished or a file was changed.
    """
    labels = list(read_labels(path))
    exemplars = {}
    for number, row in enumerate(files.read_jsonl(path / EXEMPLARS_FILE), start=1):
        where = f"{path / EXEMPLARS_FILE}, entry {number}"
        told = parse(_Exemplars, row, where)
        if told.run == FRESH:
            exemplars[told.relation] = [Fact.from_row(fact, where) for fact in told.facts]
    source = files.read_object(path / SOURCE_FILE) if (path / SOURCE_FILE).exists() else {}
    parse(SourceTold, source, str(path / SOURCE_FILE))
    return Labels(labels, exemplars, read_manifest(path), source)


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of a finished labelling; raises a UserError where there is none."""
    if (path / PARTS).exists() and not (path / LABELS_MANIFEST).exists():
        raise InputError(f"{path} holds an unfinished labelling. Run classify again to resume it.")
    manifest = files.read_object(path / LABELS_MANIFEST)
    parse(_Manifest, manifest, str(path / LABELS_MANIFEST))
    return manifest


def read_labels(path: Path) -> Iterator[Label]:
    """Yields the labels of a finished labelling, whose files are checked before the first.

    Raises:
        UserError: As `load_labels` does.
    """
    told = read_manifest(path)["files"]
    for name in {LABELS_FILE, FACTS_FILE, EXEMPLARS_FILE, *told}:
        if not (path / name).is_file() or files.sha256_file(path / name) != told.get(name):
            raise InputError(f"{path / name} was changed after labelling. Run classify again.")
    facts, labels = (files.read_jsonl(path / name) for name in (FACTS_FILE, LABELS_FILE))
    for number, (fact, row) in enumerate(zip_longest(facts, labels), start=1):
        yield _label(fact, row, f"{path}, label {number}")


def _label(fact: Any, row: Any, where: str) -> Label:
    told, about = parse(_Row, row, where), Fact.from_row(fact, where)
    if told.id != about.id:
        raise InputError(f"{where}: it is of another fact. Run classify again.")
    base = told.base.model_dump() if isinstance(told.base, Outcomes) else {}
    sampled = (told.sampled[0], told.sampled[1]) if told.sampled else None
    return Label(about, told.correct, told.category, base, told.margin, sampled)


def relation_table(labels: Iterable[Label], min_highly_known: float) -> list[dict[str, Any]]:
    """Counts categories by relation, and tells which relations pass the filter.

    The filter counts training facts only (Kaplan et al. 2026, section 2.1: at least 30 %): their
    share of HighlyKnown ones must reach `min_highly_known`. The labels are read once.

    Returns:
        One row a relation: its name, counts by category, share and verdict.
    """
    counts: dict[str, Counter[Category]] = defaultdict(Counter)
    training: dict[str, Counter[Category]] = defaultdict(Counter)
    for label in labels:
        counts[label.fact.relation][label.category] += 1
        training[label.fact.relation][label.category] += label.fact.split == "train"
    rows = []
    for relation, found in sorted(counts.items()):
        train = training[relation]
        share = train[Category.HIGHLY_KNOWN] / (train.total() or 1)
        told = {str(category): found[category] for category in Category}
        verdict = {"highly_known_share": share, "passes": share >= min_highly_known}
        rows.append({"relation": relation, **told, **verdict})
    return rows
