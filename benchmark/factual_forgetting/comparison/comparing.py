"""The comparison: which facts the base knows, and what became of them in each checkpoint."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from factual_forgetting import files, outputs
from factual_forgetting.comparison.contestants import Contestant, read_contestants, reading_notes
from factual_forgetting.comparison.interview import Interview, Opening, Reply
from factual_forgetting.comparison.outcomes import Pair
from factual_forgetting.comparison.questions import (
    COMPARED,
    CompareConfig,
    Questions,
    read_questions,
)
from factual_forgetting.comparison.result import Comparison
from factual_forgetting.config import parse
from factual_forgetting.errors import InputError, PackageError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.facts.sources import load_facts
from factual_forgetting.slick.classify import require_same
from factual_forgetting.terminal import note

_IDENTITY, ANSWERS = "identity.json", "answers"
PAGE, PER_FACT, SUMMARY = "compare.html", "facts.parquet", "compare.json"
_WRITTEN = (_IDENTITY, ANSWERS, PAGE, PER_FACT, SUMMARY)
# How narrow an interval of the net loss --quick asks for, on either side.
CLOSE_ENOUGH = 0.03
FIRST_PORTION = 400
_LEAST_GROWTH, _MOST_GROWTH, _RESERVE = 1.2, 4.0, 1.1
# Facts that the base has wrong in the first prompt, of which the unknown ones are taken.
_WRONG, _WRONG_QUICK = 1000, 200
# What is asked before the estimate: to fill caches, and to be measured.
_FEW, _MEASURED = 8, 128
Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class Sifted:
    """The facts of a portion that are compared: those the base knows, and a sample of others."""

    known: list[Fact]
    unknown: list[Fact]
    margins: dict[str, float | None]


def sift(base: Interview, facts: Sequence[Fact], runs: int, most_wrong: int) -> Sifted:
    """Finds facts that the base has right in every choosing prompt, or wrong in every one.

    A fact is asked as long as it may be one of these. Of those that are wrong in the first
    prompt, the first `most_wrong` go on.
    """
    right, wrong = list(facts), list(facts)
    margins: dict[str, float | None] = {fact.id: math.inf for fact in facts}
    for run in range(runs):
        asked = right if run == 0 else right + wrong
        replies = base.ask(run, asked)
        right = [fact for fact in right if replies[fact.id].right]
        wrong = [fact for fact in wrong if not replies[fact.id].right][:most_wrong]
        margins = {fact.id: _least(margins[fact.id], replies[fact.id].margin) for fact in right} | {
            fact.id: None for fact in wrong
        }
    return Sifted(right, wrong, margins)


def _least(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else min(first, second)


def compare(
    base: str | Path,
    checkpoints: str | Path | Sequence[str | Path],
    facts: str | Sequence[Fact] | None = None,
    *,
    style: str = "few_shot",
    runs: int = 5,
    shots: int = 3,
    seed: int = 0,
    quick: bool = False,
    model: str = "hf",
    model_args: str = "",
    engine: str = "auto",
    batch_size: str | int = "auto",
    device: str | None = None,
    output_path: str | Path | None = None,
) -> Comparison:
    """Finds what checkpoints forgot of what their base knows.

    The base knows a fact that it has right in all of `runs` few-shot prompts. What it knows is
    asked once more in a prompt outside those, of the base and of each checkpoint alike.

    Args:
        base: Directory or Hub name, or lm-eval's `key=value,key=value` of `model`.
        checkpoints: One or several of the same; `base,peft=DIR` is the base with an adapter.
        facts: Facts or a source of them; None for PopQA from the Hub, or without a network the
            atlas.
        style: `few_shot`, `zero_shot` or `chat`: the prompt that they are compared in.
        runs: Prompts in each of which the base must be right.
        shots: Exemplars in each.
        seed: Decides which facts become exemplars, and the order of the questions.
        quick: Whether to stop when the interval of the loss is within 3 points on either side.
        model: lm-eval's model class.
        model_args: Arguments that all models have in common.
        engine: What answers: `auto`, `prefix`, `lm-eval` or `vllm`.
        batch_size: A number or `auto`.
        device: For example `cuda:0`; by default the GPU where there is one.
        output_path: Where answers are kept, to resume or to add a checkpoint; nowhere by default.

    Raises:
        UserError: If a model or a fact isn't found, or the base knows none of the facts.
    """
    values = {"style": style, "runs": runs, "shots": shots, "seed": seed}
    settings = parse(CompareConfig, values, "compare")
    given = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    models = read_contestants(str(base), [str(one) for one in given], model, model_args)
    if facts is None:
        facts = default_facts(load_facts)
    loaded = load_facts(facts) if isinstance(facts, str) else facts
    questions = read_questions(loaded, settings)
    opening = Opening(engine, str(batch_size), device)
    with work_folder(output_path) as folder:
        return compare_models(models, questions, opening, folder, quick=quick)


def default_facts(load: Callable[[str], Facts]) -> Facts:
    """Loads the facts of PopQA if the Hub is in reach, else those of the atlas, and says which.

    Raises:
        UserError: If neither is at hand.
    """
    try:
        found, told = load("popqa"), "popqa from the Hub, as none are named"
    except InputError:
        try:
            found, told = load("atlas"), "atlas, as none are named and the Hub isn't in reach"
        except PackageError as error:
            told = f"No facts are named, and neither the Hub nor the atlas is here ({error})"
            raise InputError(f"{told} Or give --facts FILE.") from None
    note(f"facts: {told}")
    return found


@contextmanager
def work_folder(path: str | Path | None) -> Iterator[Path]:
    """Gives a folder for answers; without a path, one that is gone afterwards.

    Raises:
        UserError: If it can't be written, is another command's, or is being written.
    """
    if path is not None:
        outputs.require_folder(Path(path), *_WRITTEN, begun=_begun_there)
        with outputs.taken(Path(path)):
            yield Path(path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def _begun_there(folder: Path) -> bool:
    return outputs.json_with("base", "facts_sha256", "settings")(folder / _IDENTITY)


def compare_models(
    models: Sequence[Contestant],
    questions: Questions,
    opening: Opening,
    folder: Path,
    *,
    quick: bool,
) -> Comparison:
    """Compares models, the base first, on questions; answers are kept in a folder.

    Raises:
        UserError: If the folder holds answers of another comparison, or the base knows nothing.
    """
    identity = _begin(models[0], questions, opening.choice, folder)
    interviews = [Interview(one, questions, opening, folder / ANSWERS) for one in models]
    size = min(FIRST_PORTION, len(questions.order)) if quick else len(questions.order)
    while True:
        comparison = _compare_first(size, interviews, questions, identity, quick=quick)
        enough = not quick or comparison.half_width <= CLOSE_ENOUGH
        if enough or size == len(questions.order):
            return comparison
        larger = min(next_size(size, comparison.half_width), len(questions.order))
        points = 100 * comparison.half_width
        note(f"{size:,} facts: within {points:.1f} points, on to {larger:,} facts")
        size = larger


def next_size(size: int, half_width: float) -> int:
    """Returns how many facts to ask in all, by what the interval of the first ones tells."""
    needed = _RESERVE * (half_width / CLOSE_ENOUGH) ** 2
    return math.ceil(size * min(max(needed, _LEAST_GROWTH), _MOST_GROWTH))


def _begin(base: Contestant, questions: Questions, engine: str, folder: Path) -> dict[str, Any]:
    """Returns what the answers in a folder have in common, and keeps it there."""
    identity = {
        "base": base.identity,
        "engine": engine,
        "facts_sha256": questions.sha256,
        "matcher": MATCHER_VERSION,
        "settings": questions.settings.model_dump(mode="json"),
    }
    path = folder / _IDENTITY
    if path.exists():
        require_same(files.read_json(path), identity, folder)
    files.write_json(path, identity)
    (folder / ANSWERS).mkdir(exist_ok=True)
    return identity


def _compare_first(
    size: int,
    interviews: Sequence[Interview],
    questions: Questions,
    told: Mapping[str, Any],
    *,
    quick: bool,
) -> Comparison:
    """Compares on the first facts of the order, one model in memory at a time."""
    base, runs = interviews[0], questions.settings.runs
    most_wrong = _WRONG_QUICK if quick else _WRONG
    facts = questions.order[:size]
    _tell_time(base, facts, len(interviews), runs, most_wrong)
    found = sift(base, facts, runs, most_wrong)
    if not found.known:
        if quick and size < len(questions.order):
            return Comparison.nothing(told)
        raise InputError(
            f"The base has none of {size:,} facts right in all {runs} prompts. Give easier facts "
            "(--facts atlas), lower --runs, or check that it is a language model of these facts."
        )
    asked, replies = [*found.known, *found.unknown], []
    for interview in interviews:
        replies.append(interview.ask(COMPARED, asked))
        interview.close()
    outcomes = {
        interview.contestant.name: _pair(found, asked, replies[0], own)
        for interview, own in zip(interviews[1:], replies[1:], strict=True)
    }
    models = [interview.contestant for interview in interviews]
    notes = reading_notes(models[0], models[1:]) + [
        f"{interview.contestant.name} has no chat template: it was asked in plain text."
        for interview in interviews
        if interview.manner.chat and interview.manner.template is None
    ]
    portion = {"asked": size, "of": len(questions.order), "quick": quick}
    return Comparison.of(models, outcomes, {**told, "portion": portion}, notes)


def _pair(
    found: Sifted, asked: Sequence[Fact], base: Mapping[str, Reply], own: Mapping[str, Reply]
) -> list[Pair]:
    known = {fact.id for fact in found.known}
    return [Pair(f, f.id in known, found.margins[f.id], base[f.id], own[f.id]) for f in asked]


def _tell_time(
    base: Interview, facts: Sequence[Fact], models: int, runs: int, most_wrong: int
) -> None:
    """Asks a few questions, and tells on stderr what these facts will take."""
    before = len(base.ask(0, facts[:_FEW]))  # caches are filled once
    started = time.perf_counter()
    replies = base.ask(0, facts[:_MEASURED])
    if not (asked := len(replies) - before):
        return
    share = sum(reply.right for reply in replies.values()) / len(replies)
    chosen, wrong = share * len(facts), min(most_wrong, (1 - share) * len(facts))
    questions = len(facts) + (runs - 1 + models) * (chosen + wrong)
    minutes = questions * (time.perf_counter() - started) / asked / 60
    told = f"about {questions:,.0f} questions, in {minutes:.1f} minutes"
    note(f"{len(facts):,} facts: {told}")
