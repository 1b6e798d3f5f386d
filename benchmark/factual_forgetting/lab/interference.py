"""Interference: what new facts of one relation, with one kind of key, cost known facts.

After the mechanism section of Kaplan et al. 2026 (arXiv 2604.15574). One condition is one
training: so many new facts, until so many of them are learned, D_Known mixed in or not. At each
point the outcome of every fact of D_Held and the drift of its subject are kept.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import log2
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.conditions import SAME, Condition, Experiment, Settings
from factual_forgetting.lab.drift import Drift, all_layers, middle_layer, subject_states
from factual_forgetting.lab.keys import Synthetic
from factual_forgetting.lab.overlap import nearness
from factual_forgetting.lab.store import Store, write_store
from factual_forgetting.protocol import methods
from factual_forgetting.protocol.config import Execution
from factual_forgetting.protocol.curve import ask_zero_shot
from factual_forgetting.protocol.data import collate, limit
from factual_forgetting.protocol.train import Run, last_checkpoint, locate_base

if TYPE_CHECKING:
    from factual_forgetting.protocol.trainer import ForgettingTrainer

CONDITIONS = "conditions"
_WORK, _POINTS, _RESUME = "work", "points.jsonl", "resume"
_NEAREST = 5
_NUMBERS = ("step", "plasticity", "stability", "stability_other")
Point = dict[str, Any]
States = NDArray[np.float32]


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
        `bundle_sha256`, `condition`, `settings`; `parameters`, `layers`, `middle`; `keys`: mean
        `tokens` of a key and mean `rank` of these in the vocabulary, and the number of keys
        `dropped` because they are taken; `bits` of the new facts' answers; `held`: of each fact
        of D_Held of the relation `id`, `tokens` of its subject and `nearness` to the new ones;
        and `points`: `step`, `passes`, `loss`, `plasticity` (of a sample), `stability` (of the
        same relation), `stability_other`, `outcomes` of D_Held of the `same` relation and of
        `other` ones, and the `drift` of their subjects by layer.

    Raises:
        UserError: If the output holds another experiment, the relation has no facts in D_Held,
            or so many keys can't be formed.
    """
    experiment = Experiment(bundle, condition, settings)
    finished = output / CONDITIONS / f"{experiment.name}.json"
    if finished.exists():
        return _matching(finished, experiment.identity())
    work = output / _WORK / experiment.name
    result = {**experiment.identity(), **_train(experiment, work, progress)}
    files.write_json(finished, result)
    files.remove_unfinished(finished)
    shutil.rmtree(work)
    return result


def _matching(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(path)
    differing = [key for key, value in identity.items() if found.get(key) != value]
    if differing:
        raise UserError(
            f"{path} is of another experiment (its {', '.join(differing)} differ). "
            "Choose another --output_path."
        )
    return found


def _train(experiment: Experiment, work: Path, progress: bool) -> dict[str, Any]:
    from factual_forgetting.slick.engines import load_causal_lm, quiet

    quiet()
    protocol, condition = experiment.settings.protocol, experiment.condition
    _, config = experiment.method()
    run = Run(experiment.bundle, protocol, condition.method, config, condition.seed)
    base = locate_base(run, None)
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=protocol.attention)
    synthetic = experiment.synthetic(tokenizer)
    sample = _write(experiment, synthetic, tokenizer, limit(model), work)
    watch = _watch(experiment, model, tokenizer, sample, work)
    described = {
        "parameters": model.num_parameters(),
        "layers": len(all_layers(model)),
        "middle": middle_layer(model),
        "keys": _key_statistics(tokenizer, sample, synthetic.dropped),
        "bits": condition.facts * _entropy(synthetic, condition.facts),
        "held": watch.describe_held(synthetic),
    }
    trainer = _trainer(watch, base, model, work, progress)
    last = last_checkpoint(work / _RESUME, watch)
    if not watch.done():
        trainer.train(resume_from_checkpoint=last)
    return {**described, "points": watch.points}


def _write(
    experiment: Experiment, synthetic: Synthetic, tokenizer: Any, longest: int | None, work: Path
) -> list[Fact]:
    """Streams the training facts to disk, and returns the sample on which P is measured."""
    known, count = experiment.mixed_in(), experiment.condition.facts
    size = min(count, experiment.settings.protocol.evaluate_sample)
    rng = random.Random(f"sample-{experiment.condition.seed}")
    places = set(rng.sample(range(count), size))
    stream = chain(known, synthetic.facts(count))
    written = enumerate(write_store(work, stream, tokenizer, longest), start=-len(known))
    return [fact for place, fact in written if place in places]


def _key_statistics(tokenizer: Any, facts: Sequence[Fact], dropped: int) -> dict[str, float]:
    rows = _subject_ids(tokenizer, facts)
    return {
        "tokens": fmean(len(ids) for ids in rows),
        "rank": fmean(token for ids in rows for token in ids),
        "dropped": dropped,
    }


def _subject_ids(tokenizer: Any, facts: Sequence[Fact]) -> list[list[int]]:
    names = [f" {fact.subject}" for fact in facts]
    return list(tokenizer(names, add_special_tokens=False)["input_ids"])


def _entropy(synthetic: Synthetic, count: int) -> float:
    """Bits that it takes to tell one new fact's answer, given how often each occurs."""
    counts = Counter(fact.answers[0] for fact in synthetic.facts(count))
    return -sum(n / count * log2(n / count) for n in counts.values())


def _trainer(
    watch: _Watch, base: Path, model: Any, work: Path, progress: bool
) -> ForgettingTrainer:
    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    class Until(CurveCallback):
        """Ends training at the point where enough is learned."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_log(args, state, control, **kwargs)
            control.should_training_stop = watch.done() or state.global_step >= state.max_steps

    experiment, tokenizer = watch.experiment, watch.tokenizer
    schedule, seed = experiment.schedule(), experiment.condition.seed
    spaced = experiment.settings.protocol.model_copy(update={"evaluate_every": schedule.every})
    method, config = experiment.method()
    context = methods.Context(
        bundle=experiment.bundle,
        tokenizer=tokenizer,
        model=model,
        base=base,
        snapshot=work / "snapshot",
        opening=0,
        steps=schedule.steps,
        facts=(),
        best=work / "best",
    )
    trainer = ForgettingTrainer(
        batch_size=spaced.batch_size,
        penalty=method.penalty(context, config) if method.penalty else None,
        model=model,
        args=arguments(spaced, schedule.steps, seed, work / _RESUME, Execution()),
        train_dataset=Store(work, spaced.batch_size, schedule.steps, seed),
        data_collator=partial(collate, pad=tokenizer.pad_token_id or 0),
    )
    trainer.add_callback(Until(trainer, watch, spaced, None, progress))
    return trainer


@dataclass
class _Watch:
    """Measures a model in training; it stands in the place of `protocol.curve.Curve`.

    Attributes:
        experiment: What is taught.
        tokenizer: The base's tokenizer.
        base: The base, in the checkpoint's dtype.
        sample: New facts on which plasticity is measured.
        before: The base's states of D_Held's subjects, shape (layers, facts, hidden size).
        path: Where the points so far are kept.
        points: The points so far.
    """

    experiment: Experiment
    tokenizer: Any
    base: Any
    sample: Sequence[Fact]
    before: Mapping[str, States]
    path: Path
    points: list[Point]

    def describe_held(self, synthetic: Synthetic) -> list[dict[str, Any]]:
        """Describes the facts of D_Held of the relation, before training."""
        middle, count = middle_layer(self.base), self.experiment.condition.facts
        new = subject_states(self.base, self.tokenizer, synthetic.facts(count), [middle])
        near = nearness(
            self.before[SAME][middle], (batch[0] for batch in new), min(_NEAREST, count)
        )
        facts = self.experiment.held()[SAME]
        rows = _subject_ids(self.tokenizer, facts)
        return [
            {"id": fact.id, "tokens": len(ids), "nearness": float(value)}
            for fact, ids, value in zip(facts, rows, near, strict=True)
        ]

    def done(self) -> bool:
        """Whether enough is learned."""
        if self.experiment.condition.passes or not self.points:
            return False
        return bool(self.points[-1]["plasticity"] >= self.experiment.settings.plasticity)

    def at(self, step: int) -> Point | None:
        """Returns the numbers of a step's point, if there is one."""
        return next((point for point in self.lines() if point["step"] == step), None)

    def lines(self) -> list[Point]:
        """Returns the numbers of all points."""
        return [{"task_learning": None, **{n: p[n] for n in _NUMBERS}} for p in self.points]

    def forget_after(self, step: int) -> None:
        """Drops points later than a step."""
        self.points = [point for point in self.points if point["step"] <= step]

    def evaluate(self, model: Any, step: int, loss: float | None, *, final: bool) -> Point:
        """Adds the point of a step, and returns its numbers."""
        held, protocol = self.experiment.held(), self.experiment.settings.protocol
        groups = {"new": self.sample, **held}
        facts = [fact for group in groups.values() for fact in group]
        right = iter(ask_zero_shot(model, self.tokenizer, facts, protocol.max_new_tokens))
        outcomes = {
            name: "".join("01"[next(right)] for _ in group) for name, group in groups.items()
        }
        new, same, other = (_share(outcomes[name]) for name in groups)
        self.points.append(
            {
                "step": step,
                "passes": step * protocol.batch_size / self.experiment.schedule().a_pass,
                "loss": loss,
                "plasticity": new,
                "stability": same,
                "stability_other": other,
                "outcomes": {name: outcomes[name] for name in held},
                "drift": {name: self._drift(model, name, facts) for name, facts in held.items()},
            }
        )
        files.write_jsonl(self.path, self.points)
        return self.lines()[-1]

    def _drift(self, model: Any, name: str, facts: Sequence[Fact]) -> dict[str, list[float | None]]:
        drift = Drift()
        if facts:
            drift.add(self.before[name], _states(model, self.tokenizer, facts))
        return {"cosine": list(drift.cosine), "cka": drift.cka}


def _watch(
    experiment: Experiment, model: Any, tokenizer: Any, sample: Sequence[Fact], work: Path
) -> _Watch:
    from factual_forgetting.protocol.finishing import as_checkpoint

    base = as_checkpoint(model, experiment.settings.protocol.checkpoint_dtype)
    held = experiment.held()
    before = {name: _states(base, tokenizer, facts) for name, facts in held.items() if facts}
    path = work / _POINTS
    points = list(files.read_jsonl(path)) if path.exists() else []
    return _Watch(experiment, tokenizer, base, sample, before, path, points)


def _states(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> States:
    return np.concatenate([*subject_states(model, tokenizer, facts, all_layers(model))], axis=1)


def _share(outcomes: str) -> float | None:
    return outcomes.count("1") / len(outcomes) if outcomes else None
