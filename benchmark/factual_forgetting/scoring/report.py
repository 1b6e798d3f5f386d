"""The report: what a checkpoint kept, lost and learned, and how sure that is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, HELDOUT_OTHER, Bundle, Item
from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import normalise
from factual_forgetting.protocol.run import RUN
from factual_forgetting.scoring.judging import Judgement, spoken
from factual_forgetting.scoring.metrics import accuracy, curve_metrics, final_metrics
from factual_forgetting.scoring.results import Results
from factual_forgetting.scoring.statistics import row_of
from factual_forgetting.scoring.styles import STYLES
from factual_forgetting.scoring.task import local_checkpoint, tokenizer_sha256
from factual_forgetting.scoring.transitions import (
    LEARNED,
    TRANSITIONS,
    Transition,
    intrusions,
    majority_answers,
    transitions,
)

_MOSTLY_EMPTY = 0.5
_STEP = re.compile(r"(?P<stem>.*[-_/])(?P<step>\d+)")


@dataclass(frozen=True, slots=True)
class Report:
    """One checkpoint in one prompt style.

    Attributes:
        results: Its answers.
        trained: Whether it trained on D_train.
        summary: Everything but the facts, as plain JSON.
        transitions: What happened to each fact.
    """

    results: Results
    trained: bool
    summary: dict[str, Any]
    transitions: list[Transition]

    def facts(self, kind: str) -> list[dict[str, Any]]:
        """Returns the facts of one kind of transition with the checkpoint's answers."""
        return [
            {
                "split": change.split,
                **{key: getattr(change.item.fact, key) for key in ("id", "relation", "question")},
                "gold": change.item.fact.answers[0],
                "answer": change.answer,
            }
            for change in self.transitions
            if change.kind == kind
        ]


def make_report(bundle: Bundle, results: Results, *, trained: bool | None = None) -> Report:
    """Computes the report of a checkpoint.

    Args:
        bundle: The bundle.
        results: The checkpoint's answers.
        trained: Whether it trained on the bundle's D_train; None looks for a run of
            `finetune` in its directory.

    Returns:
        The report. Its estimates have `value`, `low`, `high` (95 %) and `n`, or are None.
    """
    trained = _is_run(results, bundle) if trained is None else trained
    outcome = STYLES[results.style].outcome
    correct = {key: found.correct for key, found in results.judgements.items()}
    held = [item for item in bundle.splits[HELDOUT] if item.fact.id in correct]
    changes = transitions(bundle, correct, results.answers, outcome)
    summary = {
        "checkpoint": results.name,
        "style": results.style,
        "metrics": {
            **final_metrics(bundle, results.correct, trained=trained, outcome=outcome),
            **_more_metrics(bundle, held, results),
        },
        "relations": [_relation(name, changes) for name in sorted(_relations(held))],
        "transitions": _transition_counts(changes),
        "made_with": _made_with(bundle, results),
        "notes": _notes(bundle, results),
    }
    return Report(results, trained, summary, changes)


def _is_run(results: Results, bundle: Bundle) -> bool:
    """Whether the checkpoint is a run of `finetune` on this bundle, by its weights."""
    path = Path(results.pretrained or "") / RUN
    if not results.pretrained or not path.is_file():
        return False
    run = files.read_json(path)
    same = run.get("weights_sha256") == results.weights_sha256
    return bool(same and run.get("bundle_sha256") == bundle.sha256)


def _more_metrics(bundle: Bundle, held: list[Item], results: Results) -> dict[str, Any]:
    """Metrics on D_Held that need the answers, not only whether they are right."""
    found = results.judgements
    correct = {key: judged.correct for key, judged in found.items()}
    majority = majority_answers(bundle)
    common = [i for i in held if normalise(i.fact.answers[0]) == majority.get(i.fact.relation)]
    rare = [i for i in held if normalise(i.fact.answers[0]) != majority.get(i.fact.relation)]
    chat = STYLES[results.style].chat
    said = {key: spoken(text, chat=chat) for key, text in results.answers.items()}
    wrong, intruding = intrusions(bundle, held, found, said)
    estimates = {
        "stability_macro": accuracy(held, correct, macro=True),
        "stability_strict": accuracy(held, _outcomes(found, "strict")),
        "stability_other": accuracy(bundle.splits[HELDOUT_OTHER], correct),
        "stability_majority": accuracy(common, correct),
        "stability_minority": accuracy(rare, correct),
        "abstention": accuracy(held, {k: f.abstained and not f.correct for k, f in found.items()}),
        "hallucination": accuracy(
            held, {k: not f.correct and not f.abstained for k, f in found.items()}
        ),
        "intrusion": accuracy(wrong, intruding),
    }
    f1 = [found[item.fact.id].f1 for item in held]
    return {
        **{name: row_of(value) for name, value in estimates.items()},
        "token_f1": sum(f1) / len(f1) if f1 else None,
    }


def _outcomes(found: Mapping[str, Judgement], name: str) -> dict[str, bool]:
    return {key: bool(getattr(judged, name)) for key, judged in found.items()}


def _relations(items: Sequence[Item]) -> set[str]:
    return {item.fact.relation for item in items}


def _relation(name: str, changes: Sequence[Transition]) -> dict[str, Any]:
    counts = Counter(
        change.kind
        for change in changes
        if change.split == HELDOUT and change.item.fact.relation == name
    )
    n = counts.total()
    right = {kind: counts[kind] for kind in TRANSITIONS}
    return {"relation": name, "n": n, "stability": (right["kept"] + right[LEARNED]) / n, **right}


def _transition_counts(changes: Sequence[Transition]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for change in changes:
        found.setdefault(change.split, Counter())[change.kind] += 1
    return {split: {kind: counts[kind] for kind in TRANSITIONS} for split, counts in found.items()}


def _made_with(bundle: Bundle, results: Results) -> dict[str, Any]:
    style = STYLES[results.style]
    settings = {"until": list(style.stops), "max_gen_toks": style.max_new_tokens, "greedy": True}
    return {
        "bundle_sha256": bundle.sha256,
        "weights_sha256": results.weights_sha256,
        "tokenizer_sha256": results.tokenizer_sha256,
        "prompts_sha256": results.prompts_sha256,
        "settings": settings,
        "settings_sha256": files.sha256_json(settings),
        "environment": results.environment,
    }


def _notes(bundle: Bundle, results: Results) -> list[str]:
    """What a reader must know before believing a number."""
    empty = sum(not text.strip() for text in results.answers.values())
    share = empty / len(results.answers)
    notes = []
    if share >= _MOSTLY_EMPTY:
        notes.append(
            f"It answered nothing, or newlines alone, to {share:.0%} of the questions: a format "
            "that broke looks like forgetting here. Score it with another --tasks."
        )
    if STYLES[results.style].chat:
        notes.append(
            "The base has no chat template: lost and gained compare with its answers to the "
            "same exemplars and question without one."
        )
    if results.descent_declared:
        notes.append("Its descent from the bundle's base was declared, not checked.")
    elif results.weights_sha256 is None:
        notes.append("lm-eval didn't see its weights: neither hashed nor checked for descent.")
    note = _tokenizer_note(bundle, results)
    return [*notes, note] if note else notes


def _tokenizer_note(bundle: Bundle, results: Results) -> str | None:
    base = bundle.manifest["base"]
    path = local_checkpoint(base["pretrained"], base.get("revision"))
    expected = tokenizer_sha256(path) if path else None
    if results.tokenizer_sha256 is None or expected is None:
        return None
    if results.tokenizer_sha256 == expected:
        return None
    return "Its tokenizer differs from the base's: the same questions reach it as other tokens."


def in_order(results: Sequence[Results]) -> list[Results] | None:
    """Sorts the checkpoints of one run by step; None if they aren't that.

    Trainers write them beside each other, as directories whose names differ in a number at
    the end (`checkpoint-100`).
    """
    steps: dict[int, Results] = {}
    stems = set()
    for found in results:
        match = _STEP.fullmatch((found.pretrained or "").rstrip("/"))
        if match:
            stems.add(match["stem"])
            steps[int(match["step"])] = found
    if len(results) < 2 or len(steps) < len(results) or len(stems) > 1:
        return None
    return [steps[step] for step in sorted(steps)]


def make_curve(bundle: Bundle, reports: Sequence[Report]) -> dict[str, Any]:
    """Puts the checkpoints of one run on a curve, the base's own outcomes first.

    Args:
        bundle: The bundle.
        reports: In the order of training; the checkpoints trained on D_train.

    Returns:
        `points` and what `curve_metrics` makes of them.
    """
    outcome = STYLES[reports[0].results.style].outcome
    base = {item.fact.id: item.base[outcome] for _, item in bundle.items()}
    correct = [("base", base), *((r.results.name, r.results.correct) for r in reports)]
    points = [
        {"checkpoint": name, **{key: _value(metrics[key]) for key in _CURVE}}
        for name, outcomes in correct
        for metrics in [final_metrics(bundle, outcomes, outcome=outcome)]
    ]
    return {"points": points, **curve_metrics(points)}


_CURVE = ("task_learning", "plasticity", "stability")


def _value(estimate: Mapping[str, Any] | None) -> Any:
    return estimate["value"] if estimate else None


def compare(first: Report, second: Report, bundle: Bundle) -> dict[str, Any]:
    """Compares two single checkpoints on D_Held by McNemar's exact test (1947).

    Over several seeds it would be wrong: their facts aren't independent.

    Raises:
        UserError: If they were asked in different prompts.
    """
    if first.results.style != second.results.style:
        raise UserError(
            f"{first.results.name} was asked as {first.results.style}, {second.results.name} as "
            f"{second.results.style}. Compare results of the same tasks."
        )
    ids = [item.fact.id for item in bundle.splits[HELDOUT]]
    one, two = (np.array([r.results.correct[key] for key in ids]) for r in (first, second))
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    differing = only_first + only_second
    test = scipy.stats.binomtest(only_first, differing) if differing else None
    return {
        "checkpoints": [first.results.name, second.results.name],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": float(test.pvalue) if test else 1.0,
    }
