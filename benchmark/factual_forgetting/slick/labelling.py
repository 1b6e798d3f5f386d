"""SLiCK: asks every question in many few-shot configurations and labels it by the outcomes.

Source: Gekhman et al. 2024 (arXiv 2405.05904) section 2; Kaplan et al. 2026 (arXiv 2604.15574)
section 2.1 with 20 greedy runs and 3 exemplars. Greedy runs give three categories; WeaklyKnown
exists only with sampled runs.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.config import Config
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION, is_correct
from factual_forgetting.slick import configurations, prompts
from factual_forgetting.slick.answers import Answer, Engine, Group, Query
from factual_forgetting.slick.configurations import Configurations

HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN = "HighlyKnown", "MaybeKnown", "Unknown"
CATEGORIES = (HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN)
ZERO_SHOT, FRESH = "zero_shot", "fresh"
LABELS, FACTS, EXEMPLARS, MANIFEST = (
    "labels.jsonl",
    "facts.jsonl",
    "exemplars.jsonl",
    "manifest.json",
)
_PARTS = "parts"


class SlickConfig(Config):
    """Settings that decide labels.

    Attributes:
        runs: Few-shot configurations a relation.
        shots: Exemplars in each.
        seed: Decides which facts become exemplars.
        max_new_tokens: Most tokens of an answer.
    """

    runs: int = 20
    shots: int = 3
    seed: int = 0
    max_new_tokens: int = prompts.MAX_NEW_TOKENS


@dataclass(frozen=True, slots=True)
class Label:
    """What a base knows of one fact.

    Attributes:
        fact: The fact.
        correct: One character a labelling run, `1` for right.
        category: HighlyKnown, MaybeKnown or Unknown.
        base: The base's outcome in the scoring prompts: `zero_shot` and `fresh`.
        margin: Smallest logit margin over the labelling runs; None if the engine has none.
    """

    fact: Fact
    correct: str
    category: str
    base: dict[str, bool]
    margin: float | None


@dataclass(frozen=True, slots=True)
class Labels:
    """A finished labelling: labels, exemplars by relation, and the manifest."""

    labels: list[Label]
    exemplars: dict[str, list[Fact]]
    manifest: dict[str, Any]


def category(correct: str) -> str:
    """Returns the SLiCK category of greedy outcomes (one character a run, `1` for right)."""
    if "0" not in correct:
        return HIGHLY_KNOWN
    return MAYBE_KNOWN if "1" in correct else UNKNOWN


def classify(
    facts: Sequence[Fact],
    engine: Engine,
    settings: SlickConfig,
    base: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Labels every fact that isn't an exemplar and writes the labelling.

    Each relation and configuration is one part, written as it finishes; a restart asks the
    model nothing that a finished part answers. Beside the labelling runs, every question is
    asked once without exemplars and once in the fresh configuration: the base's own outcome
    in the prompts in which checkpoints are scored.

    Args:
        facts: Facts with their splits.
        engine: Answers the questions.
        settings: Runs, shots, seed.
        base: Identity of the base model; goes into the manifest.
        output: Directory to write.

    Returns:
        The manifest.

    Raises:
        UserError: If the directory holds a labelling with other settings, a relation is too
            small, or the base answers nothing right at all.
    """
    identity = {
        "base": base,
        "engine": engine.name,
        "settings": settings.model_dump(),
        "matcher": MATCHER_VERSION,
        "facts_sha256": files.sha256_json([fact.row() for fact in facts]),
    }
    if _resume(output, identity):
        return dict(files.read_json(output / MANIFEST))
    drawn = configurations.draw(facts, settings.runs, settings.shots, settings.seed)
    questions: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.id not in drawn[fact.relation].ids:
            questions[fact.relation].append(fact)
    started = time.time()
    asked = _ask_all(questions, drawn, engine, settings, output)
    labels = list(_labels(questions, settings, output))
    if not any("1" in label.correct for label in labels):
        raise UserError(
            f"The base answers none of {len(labels)} questions in any run. "
            "Check that it is a language model of these facts, and its tokenizer."
        )
    manifest = _write(labels, drawn, identity, output)
    files.write_json(
        output / "classify.log.json", {"seconds": time.time() - started, "queries": asked}
    )
    for part in (output / _PARTS).iterdir():
        part.unlink()
    (output / _PARTS).rmdir()
    return manifest


def _resume(output: Path, identity: dict[str, Any]) -> bool:
    """Tells whether the labelling is finished; refuses one that was begun otherwise."""
    begun = output / _PARTS / "identity.json"
    finished = output / MANIFEST
    if finished.exists():
        manifest = files.read_json(finished)
        _require_same({key: manifest.get(key) for key in identity}, identity, output)
        return True
    if begun.exists():
        _require_same(files.read_json(begun), identity, output)
    else:
        files.write_json(begun, identity)
    return False


def _require_same(found: dict[str, Any], wanted: dict[str, Any], output: Path) -> None:
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        told = "; ".join(
            f"{key} was {files.dumps(found.get(key))}, now {files.dumps(wanted[key])}"
            for key in differing
        )
        raise UserError(f"{output} was begun with other settings: {told}. Use another directory.")


def _part(output: Path, relation: str, run: str) -> Path:
    # Relation names come from strangers' files: a hash can't leave the directory.
    return output / _PARTS / f"{files.sha256_json(relation)[:16]}-{run}.json"


def _ask_all(
    questions: dict[str, list[Fact]],
    drawn: dict[str, Configurations],
    engine: Engine,
    settings: SlickConfig,
    output: Path,
) -> int:
    """Asks what no part answers yet; returns the number of questions asked."""
    runs = [*range(settings.runs), FRESH, ZERO_SHOT]
    total = sum(map(len, questions.values())) * len(runs)
    asked = 0
    with tqdm(total=total, desc="classify", unit="question", smoothing=0.1) as bar:
        for relation, facts in sorted(questions.items()):
            for run in runs:
                part = _part(output, relation, str(run))
                if not part.exists():
                    prefix = _prefix(drawn[relation], run)
                    answers = _ask(engine, prefix, facts, settings.max_new_tokens)
                    asked += len(answers)
                    files.write_json(part, _outcome(facts, answers))
                bar.update(len(facts))
    return asked


def _prefix(drawn: Configurations, run: int | str) -> str:
    if run == ZERO_SHOT:
        return ""
    exemplars = drawn.fresh if run == FRESH else drawn.labelling[int(run)]
    return prompts.exemplar_prefix(exemplars)


def _ask(engine: Engine, prefix: str, facts: list[Fact], max_new_tokens: int) -> list[Answer]:
    queries = [Query(prompts.question_prompt(fact.question), fact.accepted) for fact in facts]
    return engine.answer([Group(prefix, queries)], max_new_tokens, verdict_only=True)[0]


def _outcome(facts: list[Fact], answers: list[Answer]) -> dict[str, Any]:
    pairs = zip(facts, answers, strict=True)
    return {
        "correct": "".join("01"[is_correct(answer.text, fact.accepted)] for fact, answer in pairs),
        "margins": [answer.margin for answer in answers],
    }


def _labels(
    questions: dict[str, list[Fact]], settings: SlickConfig, output: Path
) -> Iterator[Label]:
    for relation, facts in sorted(questions.items()):
        parts = {
            run: files.read_json(_part(output, relation, run))
            for run in [*map(str, range(settings.runs)), FRESH, ZERO_SHOT]
        }
        runs = [parts[str(run)] for run in range(settings.runs)]
        for index, fact in enumerate(facts):
            correct = "".join(part["correct"][index] for part in runs)
            margins = [part["margins"][index] for part in runs]
            margin = None if None in margins else min(margins)
            base = {run: parts[run]["correct"][index] == "1" for run in (ZERO_SHOT, FRESH)}
            yield Label(fact, correct, category(correct), base, margin)


def _write(
    labels: list[Label],
    drawn: dict[str, Configurations],
    identity: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    files.write_jsonl(output / FACTS, [label.fact.row() for label in labels])
    files.write_jsonl(
        output / LABELS,
        [
            {
                "id": label.fact.id,
                "correct": label.correct,
                "category": label.category,
                "base": label.base,
                "margin": label.margin,
            }
            for label in labels
        ],
    )
    files.write_jsonl(
        output / EXEMPLARS,
        [
            {"relation": relation, "run": run, "facts": [fact.row() for fact in exemplars]}
            for relation, configs in drawn.items()
            for run, exemplars in [*enumerate(configs.labelling), (FRESH, configs.fresh)]
        ],
    )
    manifest = {
        **identity,
        "categories": dict(Counter(label.category for label in labels)),
        "files": {name: files.sha256_file(output / name) for name in (FACTS, LABELS, EXEMPLARS)},
    }
    files.write_json(output / MANIFEST, manifest)
    return manifest


def load_labels(path: Path) -> Labels:
    """Loads a finished labelling, each file checked against the manifest.

    Raises:
        UserError: If it is unfinished or a file was changed.
    """
    if (path / _PARTS).exists() and not (path / MANIFEST).exists():
        raise UserError(f"{path} holds an unfinished labelling. Run classify again to resume it.")
    manifest = files.read_json(path / MANIFEST)
    for name, expected in manifest["files"].items():
        if not (path / name).is_file() or files.sha256_file(path / name) != expected:
            raise UserError(f"{path / name} was changed after labelling. Run classify again.")
    facts = {row["id"]: Fact.from_row(row) for row in files.read_jsonl(path / FACTS)}
    labels = [
        Label(facts[row["id"]], row["correct"], row["category"], row["base"], row["margin"])
        for row in files.read_jsonl(path / LABELS)
    ]
    exemplars = {
        row["relation"]: [Fact.from_row(fact) for fact in row["facts"]]
        for row in files.read_jsonl(path / EXEMPLARS)
        if row["run"] == FRESH
    }
    return Labels(labels, exemplars, manifest)


def relation_table(labels: Sequence[Label], min_highly_known: float) -> list[dict[str, Any]]:
    """Counts categories by relation, and tells which relations pass the filter.

    The filter counts training facts only (Kaplan et al. 2026, section 2.1: at least 30 %).

    Args:
        labels: All labels.
        min_highly_known: Share of HighlyKnown training facts that a relation must reach.

    Returns:
        One row a relation: its name, counts by category, share and verdict.
    """
    groups: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        groups[label.fact.relation].append(label)
    rows = []
    for relation, group in sorted(groups.items()):
        counts = Counter(label.category for label in group)
        train = [label.category for label in group if label.fact.split == "train"]
        share = train.count(HIGHLY_KNOWN) / len(train) if train else 0.0
        rows.append(
            {
                "relation": relation,
                **{name: counts[name] for name in CATEGORIES},
                "highly_known_share": share,
                "passes": share >= min_highly_known,
            }
        )
    return rows
