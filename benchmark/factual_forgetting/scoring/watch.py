"""What is asked in anyone's training, and what the answers say of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.engines.prompts import MAX_NEW_TOKENS, exemplar_prefix
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import curve
from factual_forgetting.protocol.curve import CURVE, METRIC_OF_SPLIT, OUTCOMES, Point
from factual_forgetting.protocol.live import ask_together
from factual_forgetting.protocol.recipe import is_main_process
from factual_forgetting.scoring.statistics import Estimate, proportion
from factual_forgetting.slick.configurations import draw_configurations
from factual_forgetting.slick.labelling import NOT_ASKED

WATCHED = (*METRIC_OF_SPLIT.values(), "lost", "gained")
_RUNS, _SHOTS = 5, 3
_PORTION = 512


class Watch(curve.Points):
    """The points of a training. Their files are whole after each, so a killed one goes on."""

    def __init__(
        self, facts: Bundle | Sequence[Fact], tokenizer: Any, output: Path, limit: int | None
    ) -> None:
        """Plans what to ask.

        Args:
            facts: A bundle, asked in the protocol's zero-shot prompt; or facts, of which those
                that the model knows are asked few-shot.
            tokenizer: The model's.
            output: Directory of the files.
            limit: Most facts of a split at a point that isn't whole; None for all.

        Raises:
            UserError: If no relation can spare exemplars.
        """
        self.points = []
        self._tokenizer, self._output, self._limit = tokenizer, output, limit
        self._heads: dict[str, list[str]] = {}
        if isinstance(facts, Bundle):
            splits = {name: facts.splits[name] for name in METRIC_OF_SPLIT}
            self._facts = {name: [item.fact for item in items] for name, items in splits.items()}
        else:
            self._facts = {name: [] for name in METRIC_OF_SPLIT} | {HELDOUT: self._askable(facts)}

    def _askable(self, facts: Sequence[Fact]) -> list[Fact]:
        """Draws exemplars, and returns the facts that can be asked after some."""
        distinct = list({fact.id: fact for fact in facts}.values())
        chosen = draw_configurations(distinct, _RUNS, _SHOTS, seed=0)
        # The fresh ones, outside the choosing, come last.
        self._heads = {
            relation: [exemplar_prefix(run) for run in (*found.labelling, found.fresh)]
            for relation, found in chosen.items()
        }
        taken = {key for found in chosen.values() for key in found.ids}
        return [f for f in distinct if f.relation in self._heads and f.id not in taken]

    def start(self, model: Any) -> None:
        """Finds what the model knows, unless a bundle says it, and adds the first point.

        Raises:
            UserError: If it knows nothing.
        """
        if self._heads:
            self._facts[HELDOUT] = self._known(model)
        self.evaluate(model, 0, None, final=True)

    def _known(self, model: Any) -> list[Fact]:
        asked = known = self._facts[HELDOUT]
        for run in range(_RUNS):
            right = self._ask(model, known, run)
            known = [fact for fact, verdict in zip(known, right, strict=True) if verdict]
        if not known:
            raise InputError(
                f"The model knows none of these facts: of {len(asked)} it has none right in each "
                f"of {_RUNS} few-shot prompts. Give other facts, or a base that knows some."
            )
        if is_main_process():
            sys.stderr.write(f"forgetting: {len(known)} of {len(asked)} facts are known\n")
        return known

    def _ask(self, model: Any, facts: Sequence[Fact], run: int = -1) -> list[bool]:
        """Asks facts in portions: what is computed at once has a bound, however many they are."""

        def head(fact: Fact) -> str:
            return self._heads[fact.relation][run] if self._heads else ""

        right: list[bool] = []
        hidden = not is_main_process()
        bar = tqdm(desc="ask", unit="fact", total=len(facts), leave=False, delay=2, disable=hidden)
        with bar:
            for start in range(0, len(facts), _PORTION):
                part = facts[start : start + _PORTION]
                right += ask_together(model, self._tokenizer, part, MAX_NEW_TOKENS, head)
                bar.update(len(part))
        return right

    def evaluate(self, model: Any, step: int, loss: float | None, *, final: bool) -> Point:
        """Puts a point at a step and after it none, on all facts if it is `final`."""
        limit = None if final else self._limit
        facts = [fact for part in self._facts.values() for fact in curve.drawn(part, limit)]
        verdicts = zip(facts, self._ask(model, facts), strict=True)
        self.forget_after(step - 1)
        marks = curve.outcome_marks(verdicts, self._facts)
        self.points.append({"step": step, "loss": loss, "correct": marks})
        if is_main_process():
            # Outcomes first: a killed process may leave one more there, which counts for nothing.
            rows = curve.outcome_rows(self.points, self._facts)
            files.write_jsonl(self._output / OUTCOMES, rows)
            files.write_jsonl(self._output / CURVE, self.lines())
        return self.line(self.points[-1])

    def whole(self, step: int) -> bool:
        """Tells whether the last point is of this step and of all facts."""
        last = self.points[-1]
        return last["step"] == step and NOT_ASKED not in "".join(last["correct"].values())

    def resume(self, step: int) -> None:
        """Reads the points up to a step, from which an interrupted training goes on.

        Raises:
            UserError: If they aren't there, or are of other facts.
        """
        if not (self._output / CURVE).is_file():
            raise InputError(
                f"Training goes on from step {step}, and {self._output} holds no {CURVE} that says "
                "what the model knew before. Train from the start, or leave the callback out."
            )
        rows = list(files.read_jsonl(self._output / OUTCOMES))
        outcomes = {name: [r for r in rows if r["split"] == name] for name in METRIC_OF_SPLIT}
        kept = {name: {row["id"] for row in part} for name, part in outcomes.items()}
        if self._heads:
            self._facts[HELDOUT] = [f for f in self._facts[HELDOUT] if f.id in kept[HELDOUT]]
        if [row["id"] for row in rows] != [f.id for part in self._facts.values() for f in part]:
            raise InputError(
                f"{self._output / OUTCOMES} is of other facts. Give those that the interrupted "
                "training was asked, or train into another output_dir."
            )
        for place, told in enumerate(files.read_jsonl(self._output / CURVE)):
            marks = {
                name: "".join(row["correct"][place] for row in part)
                for name, part in outcomes.items()
            }
            self.points.append({"step": told["step"], "loss": told["loss"], "correct": marks})
        self.forget_after(step)

    def line(self, point: Point) -> Point:
        """Returns a point as it stands in the curve."""
        found = {name: e and e.value for name, e in self.estimates(point).items()}
        return {"step": point["step"], "loss": point["loss"], **found}

    def estimates(self, point: Point) -> dict[str, Estimate | None]:
        """Estimates every metric of `WATCHED` at a point; None where no fact says it.

        A fact is lost that the model had right in the same prompt before training, and has wrong.
        """
        learned = {name: self._share(point, split, "1") for split, name in METRIC_OF_SPLIT.items()}
        lost, gained = self._share(point, HELDOUT, "0", "1"), self._share(point, HELDOUT, "1", "0")
        return {**learned, "lost": lost, "gained": gained}

    def _share(
        self, point: Point, split: str, mark: str, before: str | None = None
    ) -> Estimate | None:
        """The share with a mark of the facts that were asked, and had another one before."""
        facts, first = self._facts[split], self.points[0]["correct"][split]
        now = point["correct"][split]
        asked = [
            place
            for place in range(len(facts))
            if now[place] != NOT_ASKED and before in (None, first[place])
        ]
        return proportion([now[p] == mark for p in asked], [facts[p].relation for p in asked])
