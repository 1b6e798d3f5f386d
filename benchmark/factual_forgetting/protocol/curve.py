"""The curve of a run: task learning, plasticity and stability at points of training, per fact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle
from factual_forgetting.facts.fact import Fact, stable_hash
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.protocol.config import Protocol
from factual_forgetting.slick.answers import Group, Query
from factual_forgetting.slick.prefix import PrefixEngine
from factual_forgetting.slick.prompts import question_prompt

CURVE = "curve.jsonl"
OUTCOMES = "curve.outcomes.jsonl.gz"
_PARTIAL = "curve.partial.jsonl"
METRIC_OF_SPLIT = {KNOWN: "task_learning", UNKNOWN: "plasticity", HELDOUT: "stability"}
NOT_ASKED = "-"


def ask_zero_shot(
    model: Any, tokenizer: Any, facts: Sequence[Fact], max_new_tokens: int
) -> list[bool]:
    """Tells which facts are answered right, greedily, in the protocol's zero-shot prompt.

    The verdicts are those of lm-eval's greedy scoring.
    """
    engine = PrefixEngine(model, tokenizer)
    queries = [Query(question_prompt(f.question), f.accepted, likely=True) for f in facts]
    answers = engine.answer([Group("", queries)], max_new_tokens, verdict_only=True)[0]
    return [is_correct(a.text, f.accepted) for a, f in zip(answers, facts, strict=True)]


@dataclass
class Curve:
    """Evaluates a model in training and keeps the outcomes on disk, point by point.

    Attributes:
        bundle: The bundle that is trained on.
        tokenizer: The base's tokenizer.
        protocol: Says how often and on how many facts.
        output: Directory of the run.
    """

    bundle: Bundle
    tokenizer: Any
    protocol: Protocol
    output: Path
    _points: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Reads the points of an interrupted run."""
        partial = self.output / _PARTIAL
        self._points = list(files.read_jsonl(partial)) if partial.exists() else []

    def evaluate(self, model: Any, step: int, loss: float | None, *, final: bool) -> dict[str, Any]:
        """Adds the point of a step, unless it has one already.

        Args:
            model: The model in training; it is copied to the checkpoint's dtype.
            step: Optimizer steps done.
            loss: Mean training loss since the last point.
            final: Whether this is the last point, at which every fact is asked.

        Returns:
            The point as it will stand in the curve.
        """
        for point in self._points:
            if point["step"] == step:
                return self._line(point)
        asked = {name: self._sample(name, final=final) for name in METRIC_OF_SPLIT}
        facts = [fact for chosen in asked.values() for fact in chosen]
        frozen = as_checkpoint(model, self.protocol.checkpoint_dtype)
        right = ask_zero_shot(frozen, self.tokenizer, facts, self.protocol.max_new_tokens)
        verdicts = {fact.id: verdict for fact, verdict in zip(facts, right, strict=True)}
        correct = {
            name: "".join(
                "01"[verdicts[item.fact.id]] if item.fact.id in verdicts else NOT_ASKED
                for item in self.bundle.splits[name]
            )
            for name in METRIC_OF_SPLIT
        }
        self._points.append({"step": step, "loss": loss, "correct": correct})
        files.write_jsonl(self.output / _PARTIAL, self._points)
        return self._line(self._points[-1])

    def forget_after(self, step: int) -> None:
        """Drops points later than the step that training resumes from."""
        self._points = [point for point in self._points if point["step"] <= step]

    def finish(self) -> None:
        """Writes curve and outcomes in their final form."""
        files.write_jsonl(self.output / CURVE, [self._line(point) for point in self._points])
        rows = []
        for name in METRIC_OF_SPLIT:
            for index, item in enumerate(self.bundle.splits[name]):
                outcomes = "".join(point["correct"][name][index] for point in self._points)
                rows.append({"id": item.fact.id, "split": name, "correct": outcomes})
        files.write_jsonl(self.output / OUTCOMES, rows)
        (self.output / _PARTIAL).unlink(missing_ok=True)

    def _line(self, point: dict[str, Any]) -> dict[str, Any]:
        metrics = {m: share_correct(point["correct"][n]) for n, m in METRIC_OF_SPLIT.items()}
        return {"step": point["step"], "loss": point["loss"], **metrics}

    def _sample(self, name: str, *, final: bool) -> list[Fact]:
        facts = [item.fact for item in self.bundle.splits[name]]
        if name == HELDOUT or final:
            return facts
        drawn = sorted(facts, key=lambda fact: stable_hash("curve", fact.id))
        return drawn[: self.protocol.evaluate_sample]


def share_correct(outcomes: str) -> float | None:
    """Returns the share of `1` among the facts that were asked; None if none was."""
    asked = len(outcomes) - outcomes.count(NOT_ASKED)
    return outcomes.count("1") / asked if asked else None


def as_checkpoint(model: Any, dtype: str) -> Any:
    """Returns a copy of a model as it would be saved and loaded: in the checkpoint's dtype."""
    import torch

    bare = copy.deepcopy(model)
    # accelerate puts autocast around the forward pass of a model in training; the class's own
    # forward pass is what a loaded checkpoint has.
    vars(bare).pop("forward", None)
    return bare.to(getattr(torch, dtype)).eval()
