"""Interference: what new facts of one relation, with one kind of key, cost known facts.

After the mechanism section of Kaplan et al. 2026 (arXiv 2604.15574). One condition is one
training: so many new facts, until so many of them are learned, D_Known mixed in or not. At each
point the outcome of every fact of D_Held and the drift of its subject are kept.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import log2
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.models import context_length, load_causal_lm, quiet
from factual_forgetting.engines.zero_shot import answer_zero_shot
from factual_forgetting.environment import environment
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.mechanism.conditions import (
    ABSTAINED,
    RIGHT,
    SAME,
    WRONG,
    Condition,
    Experiment,
    Settings,
)
from factual_forgetting.mechanism.drift import Drift, all_layers, middle_layer, subject_states
from factual_forgetting.mechanism.examples import Store, write_store
from factual_forgetting.mechanism.overlap import nearness
from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.recipe import Execution
from factual_forgetting.protocol.run import Run
from factual_forgetting.scoring.judging import abstains, spoken

if TYPE_CHECKING:
    from factual_forgetting.protocol.trainer import ForgettingTrainer

CONDITIONS, _LOGS = "conditions", "logs"
_WORK, _POINTS, _RESUME = "work", "points.jsonl", "resume"
_NEAREST = 5
_SUBJECTS_AT_ONCE = 512
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
        `other` ones (`1` right, `0` wrong, `a` abstained), and the `drift` of their subjects by
        layer.

    Raises:
        UserError: If the output holds another experiment, the relation has no facts in D_Held,
            or so many keys can't be formed.
    """
    experiment = Experiment(bundle, condition, settings)
    finished = output / CONDITIONS / f"{experiment.name}.json"
    if finished.exists():
        return _read(finished, experiment)
    work, started = output / _WORK / experiment.name, time.time()
    result = {**experiment.identity(), **_train(experiment, work, progress)}
    told = {"environment": environment(), "seconds": time.time() - started}
    files.write_json(output / _LOGS / f"{experiment.name}.log.json", told)
    files.write_json(finished, result)
    files.remove_unfinished(finished)
    shutil.rmtree(work)
    return result


def finished_conditions(
    bundles: Sequence[Bundle], settings: Settings, output: Path
) -> list[dict[str, Any]]:
    """Reads every finished condition of some bundles, whichever command trained it.

    Args:
        bundles: The bundles, in the order of the tables.
        settings: What all conditions share.
        output: Directory of the experiment.

    Returns:
        What `run_condition` returned for each, in the order of the tables. Those that were
        trained until a lower plasticity aren't among them.

    Raises:
        UserError: If one is of another experiment.
    """
    order = {bundle.sha256: (place, bundle) for place, bundle in enumerate(bundles)}
    placed = []
    for path in (output / CONDITIONS).glob("*.json"):
        found = files.read_json(path)
        condition = Condition(**found["condition"])
        far = condition.passes or _until(found) >= settings.plasticity
        if far and found["bundle_sha256"] in order:
            place, bundle = order[found["bundle_sha256"]]
            result = _read(path, Experiment(bundle, condition, settings))
            placed.append(((place, *condition.place), result))
    return [result for _, result in sorted(placed, key=itemgetter(0))]


def _until(found: Mapping[str, Any]) -> float:
    return float(found["settings"]["plasticity"])


def _read(path: Path, experiment: Experiment) -> dict[str, Any]:
    """Reads a finished condition, as if it had been trained no further than asked."""
    found: dict[str, Any] = files.read_json(path)
    asked, until = experiment.settings.plasticity, _until(found)
    found["settings"]["plasticity"] = asked
    differing = [key for key, value in experiment.identity().items() if found.get(key) != value]
    if differing:
        raise UserError(
            f"{path} is of another experiment (its {', '.join(differing)} differ). "
            "Choose another --output_path."
        )
    if experiment.condition.passes:
        return found
    if until < asked:
        raise UserError(
            f"{path} was trained until a plasticity of {until:g} only. Choose another "
            f"--output_path, lower --plasticity from {asked:g}, or delete it to train it anew."
        )
    enough = [i for i, point in enumerate(found["points"]) if point["plasticity"] >= asked]
    return {**found, "points": found["points"][: enough[0] + 1]} if enough else found


def _train(experiment: Experiment, work: Path, progress: bool) -> dict[str, Any]:
    from factual_forgetting.protocol.trainer import last_checkpoint

    quiet()
    protocol, condition = experiment.settings.protocol, experiment.condition
    settings = experiment.method()
    run = Run(experiment.bundle, protocol, condition.method, settings, condition.seed)
    base = run.locate_base()
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=protocol.attention)
    synthetic = experiment.synthetic(tokenizer)
    seen = _Seen(condition, protocol.evaluate_sample)
    watch = _watch(experiment, model, tokenizer, seen.sample, work)
    known = experiment.mixed_in()
    facts = chain(known, synthetic.facts(condition.facts))
    stored = write_store(work, facts, tokenizer, context_length(model))
    described = {
        "parameters": model.num_parameters(),
        "layers": len(all_layers(model)),
        "middle": middle_layer(model),
        "held": watch.describe_held(seen.passing(islice(stored, len(known), None))),
        "keys": _key_statistics(tokenizer, seen.sample, synthetic.dropped),
        "bits": condition.facts * _entropy(seen.answers),
    }
    trainer = _trainer(watch, base, model, work, progress)
    last = last_checkpoint(work / _RESUME, watch)
    if not watch.done():
        trainer.train(resume_from_checkpoint=last)
    return {**described, "points": watch.points}


class _Seen:
    """What is kept of the new facts as they stream to disk.

    Attributes:
        sample: The facts on which plasticity is measured.
        answers: How often each answer occurs.
    """

    def __init__(self, condition: Condition, size: int) -> None:
        rng = random.Random(f"sample-{condition.seed}")
        self._places = set(rng.sample(range(condition.facts), min(condition.facts, size)))
        self.sample: list[Fact] = []
        self.answers: Counter[str] = Counter()

    def passing(self, facts: Iterable[Fact]) -> Iterator[Fact]:
        """Passes the new facts on, in order."""
        for place, fact in enumerate(facts):
            self.answers[fact.answers[0]] += 1
            if place in self._places:
                self.sample.append(fact)
            yield fact


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


def _entropy(counts: Counter[str]) -> float:
    """Bits that it takes to tell one new fact's answer, given how often each occurs."""
    total = counts.total()
    return -sum(n / total * log2(n / total) for n in counts.values())


def _trainer(
    watch: _Watch, base: Path, model: Any, work: Path, progress: bool
) -> ForgettingTrainer:
    from factual_forgetting.protocol.methods import METHODS
    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    class Until(CurveCallback):
        """Ends training at the point where enough is learned."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_log(args, state, control, **kwargs)
            control.should_training_stop = watch.done() or state.global_step >= state.max_steps

    experiment = watch.experiment
    schedule, seed = experiment.schedule(), experiment.condition.seed
    spaced = experiment.settings.protocol.model_copy(update={"evaluate_every": schedule.every})
    penalty = METHODS[experiment.condition.method].penalty
    context = Context(experiment.bundle, watch.tokenizer, model, base, work)
    trainer = ForgettingTrainer(
        batch_size=spaced.batch_size,
        penalty=penalty(context, experiment.method()) if penalty else None,
        model=model,
        args=arguments(spaced, schedule.steps, seed, work / _RESUME, Execution()),
        train_dataset=Store(work, spaced.batch_size, schedule.steps, seed),
        data_collator=context.collate,
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

    def describe_held(self, new: Iterable[Fact]) -> list[dict[str, Any]]:
        """Describes the facts of D_Held of the relation, before training, beside the new ones."""
        middle, count = middle_layer(self.base), self.experiment.condition.facts
        states = subject_states(self.base, self.tokenizer, new, [middle], _SUBJECTS_AT_ONCE)
        near = nearness(
            self.before[SAME][middle], (batch[0] for batch in states), min(_NEAREST, count)
        )
        held = self.experiment.held()[SAME]
        rows = _subject_ids(self.tokenizer, held)
        return [
            {"id": fact.id, "tokens": len(ids), "nearness": float(value)}
            for fact, ids, value in zip(held, rows, near, strict=True)
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
        texts = answer_zero_shot(model, self.tokenizer, facts, protocol.max_new_tokens)
        marks = iter(map(_mark, texts, facts))
        outcomes = {name: "".join(next(marks) for _ in group) for name, group in groups.items()}
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
    from factual_forgetting.protocol.weights import as_checkpoint

    base = as_checkpoint(model, experiment.settings.protocol.checkpoint_dtype)
    held = experiment.held()
    before = {name: _states(base, tokenizer, facts) for name, facts in held.items() if facts}
    path = work / _POINTS
    points = list(files.read_jsonl(path)) if path.exists() else []
    return _Watch(experiment, tokenizer, base, sample, before, path, points)


def _states(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> States:
    return np.concatenate([*subject_states(model, tokenizer, facts, all_layers(model))], axis=1)


def _mark(text: str, fact: Fact) -> str:
    if is_correct(text, fact.accepted):
        return RIGHT
    return ABSTAINED if abstains(spoken(text, chat=False)) else WRONG


def _share(outcomes: str) -> float | None:
    return outcomes.count(RIGHT) / len(outcomes) if outcomes else None
