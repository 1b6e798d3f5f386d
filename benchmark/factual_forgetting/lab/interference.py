"""Interference: what new facts of one relation, with one kind of key, cost known facts.

After the mechanism section of Kaplan et al. 2026 (arXiv 2604.15574). One condition is one
training: so many new facts, until so many of them are learned, D_Known mixed in or not. At each
point the outcome of every fact of D_Held and the drift of its subject are kept.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil, log2
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, Bundle
from factual_forgetting.config import Config
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.drift import Drift, all_layers, middle_layer, subject_states
from factual_forgetting.lab.keys import Keys, Synthetic, Values
from factual_forgetting.lab.overlap import nearness
from factual_forgetting.lab.store import Store, write_store
from factual_forgetting.protocol import methods
from factual_forgetting.protocol.config import Execution, Protocol
from factual_forgetting.protocol.curve import ask_zero_shot
from factual_forgetting.protocol.data import collate, limit
from factual_forgetting.protocol.train import Run, last_checkpoint, locate_base

if TYPE_CHECKING:
    from factual_forgetting.protocol.trainer import ForgettingTrainer

CONDITIONS = "conditions"
SAME, OTHER = "same", "other"
_POINTS = "points.jsonl"
_LEAST_STEPS = 4
_POINTS_A_PASS = 2
_NEAREST = 5
# The teacher is the base: a snapshot would have to be trained on other facts in each condition.
_METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "self_distillation": {"teacher": "base", "tau": 1.0},
}
Method = Literal["sft", "self_distillation"]
Point = dict[str, Any]


class Condition(Config):
    """What is taught, and how.

    Attributes:
        keys: Kind of the new facts' subjects; `known` gives known facts other answers.
        values: Kind of their answers.
        facts: Number of new facts.
        method: How they are taught.
        seed: Decides keys, values and order.
        mixed: Whether D_Known of all relations is part of every pass.
        passes: Trains for so many passes; None until the settings' plasticity is reached.
    """

    keys: Keys
    values: Values = "real"
    facts: int = Field(gt=0)
    method: Method = "sft"
    seed: int = 0
    mixed: bool = True
    passes: int | None = None

    @property
    def arm(self) -> str:
        """Its name, whatever the seed."""
        told = "" if self.mixed else "-alone"
        told += f"-{self.passes}passes" if self.passes else ""
        return f"{self.keys}-{self.values}-{self.facts}-{self.method}{told}"


class Settings(Config):
    """What all conditions of an experiment share.

    Attributes:
        relation: The relation of the new facts.
        protocol: Rate, batch, precision; its number of epochs doesn't count.
        plasticity: Training ends at the first point where so many new facts are right.
        most_passes: Training ends after so many passes in any case.
    """

    relation: str
    protocol: Protocol
    plasticity: float = Field(gt=0, le=1)
    most_passes: int = Field(gt=0)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How long a condition trains, in optimizer steps.

    Attributes:
        a_pass: Facts in one pass.
        every: Steps between two points.
        steps: Most steps.
    """

    a_pass: int
    every: int
    steps: int


def run_condition(
    bundle: Bundle, condition: Condition, settings: Settings, output: Path, *, progress: bool = True
) -> dict[str, Any]:
    """Trains one condition and measures it; a finished one is read, an interrupted one resumes.

    Args:
        bundle: The bundle, which names the base.
        condition: What is taught.
        settings: What all conditions share.
        output: Directory of the experiment.
        progress: Whether to draw a progress bar.

    Returns:
        `condition`, `settings`, `bundle_sha256`; `parameters`, `layers`, `middle`; `keys` (tokens
        and rank in the vocabulary of a key, means; keys `dropped` because they are taken),
        `bits` of the new facts' answers; `held`: of each D_Held fact of the relation `id`,
        `tokens` of its subject and `nearness` to the new subjects; and `points`: `step`, `passes`, `plasticity` (of a sample), outcomes of
        D_Held in the bundle's order, of the `same` relation and of `other` ones, and their
        subjects' `drift` by layer.

    Raises:
        UserError: If the output holds another experiment, the relation has no facts in D_Held,
            or so many keys can't be formed.
    """
    identity = {
        "bundle_sha256": bundle.sha256,
        "condition": condition.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
    }
    name = f"{bundle.sha256[:8]}-{condition.arm}-{condition.seed}"
    finished, work = output / CONDITIONS / f"{name}.json", output / "work" / name
    if finished.exists():
        return _matching(finished, identity)
    files.remove_unfinished(finished)
    result = {**identity, **_train(bundle, condition, settings, work, progress)}
    files.write_json(finished, result)
    shutil.rmtree(work)
    return result


def _matching(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(path)
    differing = [key for key, value in identity.items() if found.get(key) != value]
    if differing:
        raise UserError(
            f"{path} is of another experiment (its {', '.join(differing)} differ). "
            "Choose another --output_path."
        )
    return found


def _train(
    bundle: Bundle, condition: Condition, settings: Settings, work: Path, progress: bool
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from factual_forgetting.slick.engines import load_causal_lm, quiet

    quiet()
    base = locate_base(_as_run(bundle, condition, settings), None)
    synthetic = Synthetic(
        bundle,
        AutoTokenizer.from_pretrained(base),
        settings.relation,
        condition.keys,
        condition.values,
        condition.seed,
    )
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=settings.protocol.attention)
    sample = _write(bundle, condition, settings, synthetic, tokenizer, limit(model), work)
    watch = _Watch(bundle, condition, settings, tokenizer, sample, work)
    watch.start(model)
    described = {
        "parameters": model.num_parameters(),
        "layers": len(all_layers(model)),
        "middle": middle_layer(model),
        "keys": _key_statistics(tokenizer, sample, synthetic.dropped),
        "bits": condition.facts * _entropy(synthetic, condition.facts),
        "held": watch.held(synthetic),
    }
    trainer = _trainer(bundle, condition, settings, base, model, tokenizer, watch, work, progress)
    last = last_checkpoint(work / "resume", watch)
    if not watch.done():
        trainer.train(resume_from_checkpoint=last)
    return {**described, "points": watch.points}


def _as_run(bundle: Bundle, condition: Condition, settings: Settings) -> Run:
    _, config = methods.resolve(condition.method, _METHODS[condition.method])
    return Run(bundle, settings.protocol, condition.method, config, condition.seed)


def _write(
    bundle: Bundle,
    condition: Condition,
    settings: Settings,
    synthetic: Synthetic,
    tokenizer: Any,
    longest: int | None,
    work: Path,
) -> list[Fact]:
    """Streams the training facts to disk, and returns the sample on which P is measured."""
    known = [item.fact for item in bundle.splits[KNOWN]] if condition.mixed else []
    size = min(condition.facts, settings.protocol.evaluate_sample)
    places = set(random.Random(f"sample-{condition.seed}").sample(range(condition.facts), size))
    stream = chain(known, synthetic.facts(condition.facts))
    written = enumerate(write_store(work, stream, tokenizer, longest), start=-len(known))
    return [fact for place, fact in written if place in places]


def _key_statistics(tokenizer: Any, facts: Sequence[Fact], dropped: int) -> dict[str, float]:
    rows = tokenizer([f" {fact.subject}" for fact in facts], add_special_tokens=False)["input_ids"]
    return {
        "tokens": fmean(len(ids) for ids in rows),
        "rank": fmean(token for ids in rows for token in ids),
        "dropped": dropped,
    }


def _entropy(synthetic: Synthetic, count: int) -> float:
    """Bits that it takes to tell one new fact's answer, given how often each occurs."""
    counts = Counter(fact.answers[0] for fact in synthetic.facts(count))
    return -sum(n / count * log2(n / count) for n in counts.values())


def _trainer(
    bundle: Bundle,
    condition: Condition,
    settings: Settings,
    base: Path,
    model: Any,
    tokenizer: Any,
    watch: _Watch,
    work: Path,
    progress: bool,
) -> ForgettingTrainer:
    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    class Until(CurveCallback):
        """Ends training at the point where enough is learned."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_log(args, state, control, **kwargs)
            control.should_training_stop = watch.done() or state.global_step >= state.max_steps

    plan, protocol = watch.plan, settings.protocol
    method, config = methods.resolve(condition.method, _METHODS[condition.method])
    context = methods.Context(
        bundle=bundle,
        tokenizer=tokenizer,
        model=model,
        base=base,
        snapshot=work / "snapshot",
        opening=0,
        steps=plan.steps,
        facts=(),
        best=work / "best",
    )
    spaced = protocol.model_copy(update={"evaluate_every": plan.every})
    trainer = ForgettingTrainer(
        batch_size=protocol.batch_size,
        penalty=method.penalty(context, config) if method.penalty else None,
        model=model,
        args=arguments(spaced, plan.steps, condition.seed, work / "resume", Execution()),
        train_dataset=Store(work, protocol.batch_size, plan.steps, condition.seed),
        data_collator=partial(collate, pad=tokenizer.pad_token_id or 0),
    )
    trainer.add_callback(Until(trainer, watch, spaced, None, progress))
    return trainer


@dataclass
class _Watch:
    """Measures a model in training; it stands in the place of `protocol.curve.Curve`.

    Attributes:
        bundle: The bundle.
        condition: What is taught.
        settings: What all conditions share.
        tokenizer: The base's tokenizer.
        sample: New facts on which plasticity is measured.
        work: Directory for the points so far.
        points: The points so far.
    """

    bundle: Bundle
    condition: Condition
    settings: Settings
    tokenizer: Any
    sample: Sequence[Fact]
    work: Path
    points: list[Point] = field(default_factory=list)

    def start(self, base: Any) -> None:
        """Reads the points of an interrupted training, and the states of the base."""
        from factual_forgetting.protocol.finishing import as_checkpoint

        path = self.work / _POINTS
        self.points = list(files.read_jsonl(path)) if path.exists() else []
        held = [item.fact for item in self.bundle.splits[HELDOUT]]
        self._held = {
            SAME: [fact for fact in held if fact.relation == self.settings.relation],
            OTHER: [fact for fact in held if fact.relation != self.settings.relation],
        }
        self._layers, self._middle = all_layers(base), middle_layer(base)
        self._base = as_checkpoint(base, self.settings.protocol.checkpoint_dtype)
        self._before = {name: self._states(self._base, facts) for name, facts in self._held.items()}
        a_pass = self.condition.facts
        a_pass += len(self.bundle.splits[KNOWN]) if self.condition.mixed else 0
        passes = self.condition.passes or self.settings.most_passes
        steps = a_pass / self.settings.protocol.batch_size
        every = max(_LEAST_STEPS, ceil(steps / _POINTS_A_PASS))
        self.plan = _Plan(a_pass, every, ceil(passes * steps))

    def held(self, synthetic: Synthetic) -> list[dict[str, Any]]:
        """Describes the facts of D_Held of the relation, before training."""
        new = subject_states(
            self._base, self.tokenizer, synthetic.facts(self.condition.facts), [self._middle]
        )
        before = self._before[SAME][self._middle]
        count = min(_NEAREST, self.condition.facts)
        near = nearness(before, (batch[0] for batch in new), count)
        facts = self._held[SAME]
        rows = self.tokenizer([f" {f.subject}" for f in facts], add_special_tokens=False)
        return [
            {"id": fact.id, "tokens": len(ids), "nearness": float(value)}
            for fact, ids, value in zip(facts, rows["input_ids"], near, strict=True)
        ]

    def done(self) -> bool:
        """Whether enough is learned."""
        if self.condition.passes or not self.points:
            return False
        return bool(self.points[-1]["plasticity"] >= self.settings.plasticity)

    def at(self, step: int) -> Point | None:
        """Returns the point of a step, if there is one."""
        return next((point for point in self.lines() if point["step"] == step), None)

    def lines(self) -> list[Point]:
        """Returns the numbers of all points."""
        names = ("step", "plasticity", "stability", "stability_other")
        return [{name: p[name] for name in names} | {"task_learning": None} for p in self.points]

    def forget_after(self, step: int) -> None:
        """Drops points later than a step."""
        self.points = [point for point in self.points if point["step"] <= step]

    def evaluate(self, model: Any, step: int, loss: float | None, *, final: bool) -> Point:
        """Adds the point of a step, and returns its numbers."""
        groups = {"new": self.sample, **self._held}
        facts = [fact for group in groups.values() for fact in group]
        right = iter(
            ask_zero_shot(model, self.tokenizer, facts, self.settings.protocol.max_new_tokens)
        )
        outcomes = {
            name: "".join("01"[next(right)] for _ in group) for name, group in groups.items()
        }
        shares = {name: _share(text) for name, text in outcomes.items()}
        self.points.append(
            {
                "step": step,
                "passes": step * self.settings.protocol.batch_size / self.plan.a_pass,
                "loss": loss,
                "plasticity": shares["new"],
                "stability": shares[SAME],
                "stability_other": shares[OTHER],
                "outcomes": {name: outcomes[name] for name in self._held},
                "drift": {name: self._drift(model, name) for name in self._held},
            }
        )
        files.write_jsonl(self.work / _POINTS, self.points)
        return self.lines()[-1]

    def _drift(self, model: Any, name: str) -> dict[str, list[float | None]]:
        drift = Drift()
        drift.add(self._before[name], self._states(model, self._held[name]))
        return {"cosine": list(drift.cosine), "cka": drift.cka}

    def _states(self, model: Any, facts: Sequence[Fact]) -> NDArray[np.float32]:
        batches: Iterator[NDArray[np.float32]] = subject_states(
            model, self.tokenizer, facts, self._layers
        )
        return np.concatenate([*batches], axis=1) if facts else np.empty((0, 0, 0), np.float32)


def _share(outcomes: str) -> float | None:
    return outcomes.count("1") / len(outcomes) if outcomes else None
