"""The report: what a checkpoint kept, lost and learned, and how sure that is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, HELDOUT_OTHER, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.facts.account import has_majority_answer, majority_answers
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import normalise
from factual_forgetting.protocol.curve import METRIC_OF_SPLIT
from factual_forgetting.protocol.run import told_by_run
from factual_forgetting.scoring.judging import spoken
from factual_forgetting.scoring.metrics import accuracy, curve_metrics, final_metrics
from factual_forgetting.scoring.reading import differing_frames, told_arguments
from factual_forgetting.scoring.results import Results
from factual_forgetting.scoring.statistics import Estimate, mcnemar, row_of
from factual_forgetting.scoring.styles import STYLES
from factual_forgetting.scoring.task import local_checkpoint, tokenizer_sha256
from factual_forgetting.slick.labelling import ZERO_SHOT

KEPT, LOST, LEARNED, STILL_UNKNOWN = "kept", "lost", "learned", "still unknown"
TRANSITIONS = (KEPT, LOST, LEARNED, STILL_UNKNOWN)
# By what the base had right, and by what the checkpoint has.
_KINDS = {True: {True: KEPT, False: LOST}, False: {True: LEARNED, False: STILL_UNKNOWN}}
_MOSTLY_EMPTY = 0.5
_RARELY = 0.5
_UNSURE = (
    "Its checkpoint isn't there from here, so nothing tells whether it trained on D_train: say "
    "--trained or --no-trained."
)
_CHECKPOINT, _STATE = re.compile(r"checkpoint-(\d+)"), "trainer_state.json"
_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True, slots=True)
class Transition:
    """One fact, before and after: an item of a split, a kind of `TRANSITIONS`, the new answer."""

    split: str
    item: Item
    kind: str
    answer: str

    @property
    def fact(self) -> Fact:
        """The fact alone."""
        return self.item.fact


@dataclass(frozen=True, slots=True)
class Report:
    """One checkpoint in one prompt style.

    Attributes:
        trained: Whether it trained on D_train.
        summary: Everything but the facts, as plain JSON.
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
                **{key: getattr(change.fact, key) for key in ("id", "relation", "question")},
                "gold": change.fact.answers[0],
                "answer": change.answer,
            }
            for change in self.transitions
            if change.kind == kind
        ]


def make_report(bundle: Bundle, results: Results, *, trained: bool | None = None) -> Report:
    """Computes a report, whose estimates have `value`, `low`, `high` (95 %) and `n`, or are None.

    `trained` says whether the checkpoint trained on the bundle's D_train; None looks for a run of
    `finetune` in its directory.
    """
    unsure = trained is None and results.pretrained and not local_checkpoint(results.pretrained)
    trained = _is_run(results, bundle) if trained is None else trained
    outcome = STYLES[results.style].outcome
    changes = _transitions(bundle, results)
    held = [change for change in changes if change.split == HELDOUT]
    splits = dict.fromkeys(change.split for change in changes)
    relations = sorted({change.fact.relation for change in held})
    summary = {
        "checkpoint": results.name,
        "style": results.style,
        "metrics": {
            **final_metrics(bundle, results.correct, trained=trained, outcome=outcome),
            **_more_metrics(bundle, results),
        },
        "relations": [_relation(name, held) for name in relations],
        "transitions": {
            split: _count_kinds(c for c in changes if c.split == split) for split in splits
        },
        "made_with": _made_with(bundle, results),
        "notes": [*_notes(bundle, results), *([_UNSURE] if unsure else [])],
    }
    return Report(results, trained, summary, changes)


def _transitions(bundle: Bundle, results: Results) -> list[Transition]:
    """Classifies every fact that was asked by what the base had in the same prompt."""
    outcome, judged = STYLES[results.style].outcome, results.judgements
    return [
        Transition(split, item, _KINDS[item.base[outcome]][judged[item.fact.id].correct], answer)
        for split, item in bundle.items()
        if (answer := results.answers.get(item.fact.id)) is not None
    ]


def _count_kinds(changes: Iterable[Transition]) -> dict[str, int]:
    counts = Counter(change.kind for change in changes)
    return {kind: counts[kind] for kind in TRANSITIONS}


def _is_run(results: Results, bundle: Bundle) -> bool:
    """Whether the checkpoint is a run of `finetune` on this bundle, by its weights."""
    run = told_by_run(Path(results.pretrained)) if results.pretrained else None
    told = {"weights_sha256": results.weights_sha256, "bundle_sha256": bundle.sha256}
    return run is not None and all(run[key] == value for key, value in told.items())


def _more_metrics(bundle: Bundle, results: Results) -> dict[str, Any]:
    """Metrics on D_Held that need the answers, not only whether they are right."""
    found = results.judgements
    held = [item for item in bundle.splits[HELDOUT] if item.fact.id in found]
    train = [item.fact for name in (KNOWN, UNKNOWN) for item in bundle.splits[name]]
    majority = majority_answers(train)
    common = {item.fact.id for item in held if has_majority_answer(item.fact, majority)}

    def share(items: list[Item], name: str, *, macro: bool = False) -> Estimate | None:
        return accuracy(items, {k: getattr(j, name) for k, j in found.items()}, macro=macro)

    estimates = {
        "stability_macro": share(held, "correct", macro=True),
        "stability_strict": share(held, "strict"),
        "stability_other": share(bundle.splits[HELDOUT_OTHER], "correct"),
        "stability_majority": share([i for i in held if i.fact.id in common], "correct"),
        "stability_minority": share([i for i in held if i.fact.id not in common], "correct"),
        "abstention": share(held, "declined"),
        "hallucination": share(held, "hallucinated"),
        "intrusion": accuracy(held, _intrusions(bundle, held, results)),
    }
    return {
        **{name: row_of(value) for name, value in estimates.items()},
        "token_f1": sum(found[i.fact.id].f1 for i in held) / len(held) if held else None,
    }


def _intrusions(bundle: Bundle, held: list[Item], results: Results) -> dict[str, bool]:
    """Whether a wrong answer names an object that D_Unk teaches, of whatever relation."""
    golds = {normalise(gold) for item in bundle.splits[UNKNOWN] for gold in item.fact.accepted}
    golds.discard("")
    chat = STYLES[results.style].chat
    return {
        key: normalise(spoken(results.answers[key], chat=chat)) in golds
        for key in (item.fact.id for item in held)
        if results.judgements[key].hallucinated
    }


def _relation(name: str, held: Sequence[Transition]) -> dict[str, Any]:
    counts = _count_kinds(change for change in held if change.fact.relation == name)
    n, right = sum(counts.values()), counts[KEPT] + counts[LEARNED]
    return {"relation": name, "n": n, "stability": right / n, **counts}


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
        **({"asked_with": results.asked_with} if results.asked_with else {}),
        "environment": results.environment,
    }


def _notes(bundle: Bundle, results: Results) -> list[str]:
    """What a reader must know before believing a number."""
    share = sum(not text.strip() for text in results.answers.values()) / len(results.answers)
    notes = []
    if share >= _MOSTLY_EMPTY:
        notes.append(
            f"It answered nothing, or newlines alone, to {share:.0%} of the questions: a format "
            "that broke looks like forgetting here. Score it with another --tasks."
        )
    if STYLES[results.style].chat:
        notes.append(
            "The base was asked without a chat template: lost and gained compare with its answers "
            "to the same exemplars and question."
        )
    if results.descent_declared:
        notes.append("Its descent from the bundle's base was declared, not checked.")
    elif results.weights_sha256 is None:
        notes.append("lm-eval didn't see its weights: neither hashed nor checked for descent.")
    elif bundle.manifest["base"]["shape"] is None:
        notes.append("The bundle doesn't know its base's weights: descent isn't checked.")
    notes += _base_note(bundle, STYLES[results.style].outcome)
    return notes + _reading_notes(bundle.manifest["base"], results)


def _base_note(bundle: Bundle, outcome: str) -> list[str]:
    """Tells where the base itself is mostly wrong in this prompt about what it knows."""
    held = bundle.splits[HELDOUT]
    right = sum(item.base[outcome] for item in held)
    if right >= _RARELY * len(held):
        return []
    other = " Score --tasks factual_forgetting_fewshot beside it." if outcome == ZERO_SHOT else ""
    return [
        f"The base has {right:,} of its {len(held):,} facts of D_Held right in this prompt: lost, "
        "gained and forgetting from the base say little here. S and forgetting from the label read "
        f"against what it knows few-shot.{other}"
    ]


def _reading_notes(base: Mapping[str, Any], results: Results) -> list[str]:
    """Where the checkpoint may have read something else than the base did."""
    notes = []
    expected = told_arguments(base.get("model_args") or {})
    if results.asked_with != expected:
        notes.append(
            f"It was asked with {_pairs(results.asked_with)}, the base with {_pairs(expected)}: "
            "what it reads or computes may differ by more than its training."
        )
    path = local_checkpoint(base["pretrained"], base.get("revision"))
    known = tokenizer_sha256(path) if path else None
    if known and results.tokenizer_sha256 not in (None, known):
        notes.append(
            "Its tokenizer differs from the base's: the same questions reach it as other tokens."
        )
    own = local_checkpoint(results.asked_with.get("tokenizer") or results.pretrained)
    if path and own and (differing := differing_frames(own, path)):
        found, right = differing
        notes.append(
            f"Its tokenizer puts the special tokens {found} around a text, the base's {right}."
        )
    return notes


def _pairs(arguments: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return told or "no such argument"


def in_order(results: Sequence[Results], *, declared: bool = False) -> list[Results] | None:
    """Sorts the checkpoints of one run by step; None if they aren't that.

    A Trainer writes them beside each other, as `checkpoint-STEP` or with a state that tells their
    step. Finished runs of `finetune` are never checkpoints of one run: seeds, say.

    Args:
        results: What the checkpoints answered.
        declared: Whether somebody says that they are: their names may be any then, and the order
            is that of the numbers they end in, or else the given one.
    """
    paths = [Path(found.pretrained or found.name) for found in results]
    steps = [_number(path) if declared else _step(path) for path in paths]
    told = {step for step in steps if step is not None}
    if len(told) < len(results):
        return list(results) if declared else None
    if not declared and (len(results) < 2 or len({path.parent for path in paths}) > 1):
        return None
    return [found for _, found in sorted(zip(steps, results, strict=True), key=_first)]


def steps_of(ordered: Sequence[Results]) -> list[int]:
    """Steps of the checkpoints of one run in order, or their places where not all tell a step."""
    paths = [Path(found.pretrained or found.name) for found in ordered]
    told = [_number(path) if (step := _step(path)) is None else step for path in paths]
    steps = [step for step in told if step is not None]
    rising = all(later > earlier for earlier, later in pairwise([0, *steps]))
    return steps if rising and len(steps) == len(paths) else [*range(1, len(paths) + 1)]


def _first(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _number(path: Path) -> int | None:
    found = _NUMBER.search(path.name)
    return int(found[1]) if found else None


def _step(path: Path) -> int | None:
    """The step that a Trainer wrote a checkpoint at; None where it says none."""
    if told_by_run(path):
        return None
    with suppress(UserError):
        state = files.read_json(path / _STATE, ours=False)
        step = state.get("global_step") if isinstance(state, dict) else None
        return step if isinstance(step, int) else None
    named = _CHECKPOINT.fullmatch(path.name)
    return int(named[1]) if named else None


def make_curve(bundle: Bundle, reports: Sequence[Report]) -> dict[str, Any]:
    """Returns the `points` of one run, the base's outcomes first, and their `curve_metrics`.

    `reports` are in the order of training; the checkpoints trained on D_train.
    """
    outcome = STYLES[reports[0].results.style].outcome
    base = {item.fact.id: item.base[outcome] for _, item in bundle.items()}
    asked = [("base", base), *((r.results.name, r.results.correct) for r in reports)]
    points: list[dict[str, Any]] = [
        {
            "checkpoint": name,
            **{
                metric: share.value if (share := accuracy(bundle.splits[split], correct)) else None
                for split, metric in METRIC_OF_SPLIT.items()
            },
        }
        for name, correct in asked
    ]
    return {"points": points, **curve_metrics(points)}


def compare_two(first: Report, second: Report, bundle: Bundle) -> dict[str, Any]:
    """Compares two single checkpoints on D_Held by McNemar's exact test (1947).

    Over several seeds it would be wrong: their facts aren't independent. Checkpoints that were
    asked in different prompts raise a UserError.
    """
    if first.results.style != second.results.style:
        raise InputError(
            f"{first.results.name} was asked as {first.results.style}, {second.results.name} as "
            f"{second.results.style}. Compare results of the same tasks."
        )
    ids = [item.fact.id for item in bundle.splits[HELDOUT]]
    pairs = [(first.results.correct[key], second.results.correct[key]) for key in ids]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    return {
        "checkpoints": [first.results.name, second.results.name],
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": mcnemar(only_first, only_second),
    }
