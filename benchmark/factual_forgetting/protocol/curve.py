"""The curve of a run: what the model knows, and what it cost, at points of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, VALIDATION, Bundle
from factual_forgetting.config import Config, Told, parse
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact, stable_hash
from factual_forgetting.protocol.live import ask_together
from factual_forgetting.protocol.recipe import Protocol, is_main_process
from factual_forgetting.slick.labelling import NOT_ASKED, Marks

CURVE = "curve.jsonl"
OUTCOMES = "curve.outcomes.jsonl.gz"
_VALIDATION_OUTCOMES = "curve.validation.jsonl.gz"
PARTIAL_CURVE = "curve.partial.jsonl"
METRIC_OF_SPLIT = {KNOWN: "task_learning", UNKNOWN: "plasticity", HELDOUT: "stability"}
_ASKED = {**METRIC_OF_SPLIT, VALIDATION: "validation_stability"}
# What `selection_score` reads: without facts of both nothing can be chosen.
CHOSEN_BY = (VALIDATION, UNKNOWN)
Point = dict[str, Any]
_Count = Annotated[int, Field(ge=0)] | None
_Share = Annotated[float, Field(ge=0, le=1)] | None
_FEWEST_POINTS = 2  # The base, and what training made of it.


class _PointTold(Told):
    """What is read of a line of a curve."""

    step: Annotated[int, Field(ge=0)]
    loss: float | None
    tokens: _Count = None
    teacher_tokens: _Count = None
    task_learning: _Share = None
    plasticity: _Share = None
    stability: _Share = None
    validation_stability: _Share = None
    kl_to_base: float | None = None


class _OutcomeTold(Config, strict=True):
    """A line of a curve's outcomes."""

    id: str
    split: str
    correct: Marks


def read_curve(path: Path) -> list[Point]:
    """Reads the curve of a run from its directory.

    Raises:
        UserError: If it is malformed, has steps that don't rise, or is cut.
    """
    points = list(files.read_jsonl(path / CURVE))
    told = [parse(_PointTold, p, f"{path / CURVE}, point {n}") for n, p in enumerate(points)]
    if len(told) < _FEWEST_POINTS or any(b.step <= a.step for a, b in pairwise(told)):
        raise InputError(f"{path / CURVE} is cut, or its steps don't rise. Train again.")
    return points


def read_outcomes(path: Path, points: int) -> dict[str, str]:
    """Reads the outcomes of each fact along a run's curve, by the fact's id.

    Raises:
        UserError: If they are malformed, or not one a point for each fact once.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(files.read_jsonl(path / OUTCOMES), start=1):
        where = f"{path / OUTCOMES}, entry {number}"
        told = parse(_OutcomeTold, row, where)
        if told.id in found or len(told.correct) != points:
            raise InputError(f"{where}: it doesn't fit the bundle or the curve. Train again.")
        found[told.id] = told.correct
    return found


class Points(ABC):
    """The points of a training so far."""

    def __init__(self, path: Path) -> None:
        """Reads the points of an interrupted training, if any."""
        self.points: list[Point] = list(files.read_jsonl(path)) if path.exists() else []

    def at(self, step: int) -> Point | None:
        """Returns the point of a step as it is told, if there is one."""
        return next((self.line(point) for point in self.points if point["step"] == step), None)

    def lines(self) -> list[Point]:
        """Returns all points as they are told."""
        return [self.line(point) for point in self.points]

    def forget_after(self, step: int) -> None:
        """Drops points later than a step."""
        self.points = [point for point in self.points if point["step"] <= step]

    @abstractmethod
    def line(self, point: Point) -> Point:
        """Returns a point as it is told: its numbers, without the outcomes of single facts."""

    @abstractmethod
    def evaluate(self, model: Any, step: int, loss: float | None, *, final: bool) -> Point:
        """Adds the point of a step, keeps it for a resumed training, and returns its line."""


@dataclass
class Curve(Points):
    """Evaluates a model in training and keeps the outcomes on disk, point by point.

    Attributes:
        bundle: The bundle that is trained on.
        tokenizer: The base's tokenizer.
        protocol: Says how often and on how many facts.
        output: Directory of the run.
        divergence: Measures a model's divergence from the base.
        cost: The `tokens` that the student, and `teacher_tokens` that a teacher read until a step.
        persistent: Whether new points are kept for a resumed run. What is made of a finished
            training isn't: it is made again, from the same points.
    """

    bundle: Bundle
    tokenizer: Any
    protocol: Protocol
    output: Path
    divergence: Callable[[Any], float | None]
    cost: Callable[[int], dict[str, int]]
    persistent: bool = True

    def __post_init__(self) -> None:
        """Reads the points of an interrupted run."""
        super().__init__(self.output / PARTIAL_CURVE)
        self._facts = {name: [item.fact for item in self.bundle.splits[name]] for name in _ASKED}

    def evaluate(
        self,
        model: Any,
        step: int,
        loss: float | None,
        *,
        final: bool,
        trained: int | None = None,
        alpha: float | None = None,
    ) -> Point:
        """Adds the point of a step, and returns it as it will stand in the curve.

        Args:
            model: The model, in the checkpoint's dtype and eval mode.
            step: Optimizer steps done.
            loss: Mean training loss since the last point.
            final: Whether this is the last point, at which every fact is asked.
            trained: Optimizer steps that the model cost, if not `step`.
            alpha: The share of the trained weights where weights are averaged.
        """
        facts = [fact for name in _ASKED for fact in self._sample(name, final)]
        asked = (model, self.tokenizer, facts, self.protocol.max_new_tokens)
        right = ask_together(*asked, matcher=self.bundle.matcher)
        correct = outcome_marks(zip(facts, right, strict=True), self._facts)
        measured = {"loss": loss, "kl_to_base": self.divergence(model), "alpha": alpha}
        cost = self.cost(step if trained is None else trained)
        self.points.append({"step": step, **measured, **cost, "correct": correct})
        if self.persistent and is_main_process():
            files.write_jsonl(self.output / PARTIAL_CURVE, self.points)
        return self.line(self.points[-1])

    def finish(self) -> None:
        """Writes curve and outcomes in their final form."""
        files.write_jsonl(self.output / CURVE, self.lines())
        trained = {name: self._facts[name] for name in METRIC_OF_SPLIT}
        files.write_jsonl(self.output / OUTCOMES, outcome_rows(self.points, trained))
        validation = {VALIDATION: self._facts[VALIDATION]}
        files.write_jsonl(self.output / _VALIDATION_OUTCOMES, outcome_rows(self.points, validation))

    def line(self, point: Point) -> Point:
        """Returns a point as it will stand in the curve."""
        measured = {key: value for key, value in point.items() if key != "correct"}
        shares = {metric: share_correct(point["correct"][name]) for name, metric in _ASKED.items()}
        return {**measured, **shares}

    def _sample(self, name: str, final: bool) -> Sequence[Fact]:
        whole = name in {HELDOUT, VALIDATION} or final
        return drawn(self._facts[name], None if whole else self.protocol.evaluate_sample)


def sampled(ids: Iterable[str], most: int) -> list[str]:
    """Draws the facts of D_Known or D_Unk that are asked at every point before the last."""
    return sorted(ids, key=lambda key: stable_hash("curve", key))[:most]


def drawn(facts: Sequence[Fact], most: int | None) -> Sequence[Fact]:
    """Returns the facts that a point asks: all of them without `most`, else always the same."""
    if most is None:
        return facts
    by_id = {fact.id: fact for fact in facts}
    return [by_id[key] for key in sampled(by_id, most)]


def outcome_marks(
    verdicts: Iterable[tuple[Fact, bool]], splits: Mapping[str, Sequence[Fact]]
) -> dict[str, str]:
    """Returns a point's outcomes by split, one character a fact: `-` for those not asked."""
    found = {fact.id: "01"[verdict] for fact, verdict in verdicts}
    return {
        name: "".join(found.get(fact.id, NOT_ASKED) for fact in facts)
        for name, facts in splits.items()
    }


def outcome_rows(
    points: Sequence[Point], splits: Mapping[str, Sequence[Fact]]
) -> list[dict[str, str]]:
    """Returns the outcomes of every fact along a curve, as they stand in its file."""
    return [
        {
            "id": fact.id,
            "split": name,
            "correct": "".join(point["correct"][name][index] for point in points),
        }
        for name, facts in splits.items()
        for index, fact in enumerate(facts)
    ]


def share_correct(outcomes: str) -> float | None:
    """Returns the share of `1` among the facts that were asked; None if none was."""
    asked = len(outcomes) - outcomes.count(NOT_ASKED)
    return outcomes.count("1") / asked if asked else None


def selection_score(point: Point) -> float:
    """What every choice is made by: the mean of S on validation and of P on D_Unk.

    Validation is disjoint from D_Held, so nothing reported as stability is ever chosen by.
    """
    return float(point["validation_stability"] + point["plasticity"]) / 2
