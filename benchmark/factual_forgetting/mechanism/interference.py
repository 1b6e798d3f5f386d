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
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from math import log2
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from factual_forgetting import files, outputs
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.models import context_length, load_causal_lm, quiet
from factual_forgetting.engines.prefix import answer_zero_shot
from factual_forgetting.environment import environment
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.mechanism import conditions, drift
from factual_forgetting.mechanism.conditions import OTHER, SAME, Condition, Experiment, Settings
from factual_forgetting.mechanism.examples import StoredExamples, write_examples
from factual_forgetting.mechanism.keys import Synthetic, inner_tokens
from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.curve import Point, Points, share_correct
from factual_forgetting.protocol.methods import METHODS
from factual_forgetting.protocol.recipe import Execution
from factual_forgetting.protocol.run import Run
from factual_forgetting.scoring.judging import abstains, spoken

_CONDITIONS, _LOGS = "conditions", "logs"
_WORK, _POINTS, _RESUME = "work", "points.jsonl", "resume"
_NEAREST = 5
_SUBJECTS_AT_ONCE = 512
_NUMBERS = ("step", "plasticity", "stability", "stability_other")


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
        UserError: If the output is of another experiment, D_Held has no facts of the relation, or
            so many keys can't be formed.
    """
    experiment = Experiment(bundle, condition, settings)
    finished = output / _CONDITIONS / f"{experiment.name}.json"
    work, started = output / _WORK / experiment.name, time.time()
    if finished.exists():
        shutil.rmtree(work, ignore_errors=True)  # A killed command left it.
        return _read(finished, experiment)
    with outputs.taken(work):
        result = {**experiment.identity(), **_train(experiment, work, progress)}
        told = {"environment": environment(), "seconds": time.time() - started}
        files.write_json(output / _LOGS / f"{experiment.name}.log.json", told)
        files.write_json(finished, result)
        shutil.rmtree(work)
    return result


def finished_conditions(
    bundles: Sequence[Bundle], settings: Settings, output: Path
) -> list[dict[str, Any]]:
    """Returns what `run_condition` did for every finished condition, whichever command trained it.

    Those that were trained until a lower plasticity are left out.

    Args:
        bundles: Whose, in the order of the tables, which is that of the result too.
        settings: What all conditions share.
        output: Directory of the experiment.

    Raises:
        UserError: If one is of another experiment.
    """
    places = {bundle.sha256: place for place, bundle in enumerate(bundles)}
    placed = []
    for path in (output / _CONDITIONS).glob("*.json"):
        found = files.read_json(path)
        condition, place = Condition(**found["condition"]), places.get(found["bundle_sha256"])
        far = condition.passes or found["settings"]["plasticity"] >= settings.plasticity
        if far and place is not None:
            result = _read(path, Experiment(bundles[place], condition, settings))
            placed.append(((place, *condition.place), result))
    return [result for _, result in sorted(placed, key=itemgetter(0))]


def _read(path: Path, experiment: Experiment) -> dict[str, Any]:
    """Reads a finished condition, as if it had been trained no further than asked."""
    found: dict[str, Any] = files.read_json(path)
    asked, until = experiment.settings.plasticity, found["settings"]["plasticity"]
    found["settings"]["plasticity"] = asked
    differing = [key for key, value in experiment.identity().items() if found.get(key) != value]
    if differing:
        raise InputError(
            f"{path} is of another experiment (its {', '.join(differing)} differ). "
            "Choose another --output_path."
        )
    if experiment.condition.passes:
        return found
    if until < asked:
        raise InputError(
            f"{path} was trained until a plasticity of {until:g} only. Choose another "
            f"--output_path, lower --plasticity from {asked:g}, or delete it to train it anew."
        )
    points = found["points"]
    enough = (i for i, point in enumerate(points, 1) if point["plasticity"] >= asked)
    return {**found, "points": points[: next(enough, None)]}


def _train(experiment: Experiment, work: Path, progress: bool) -> dict[str, Any]:
    from factual_forgetting.protocol.trainer import last_checkpoint

    quiet()
    run, told = experiment.run(), experiment.condition
    base = run.locate_base().whole(work)
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=run.protocol.attention)
    relation = experiment.settings.relation
    synthetic = Synthetic(run.bundle, tokenizer, relation, told.keys, told.values, told.seed)
    rng, size = random.Random(f"sample-{told.seed}"), min(told.facts, run.protocol.evaluate_sample)
    sampled = set(rng.sample(range(told.facts), size))
    sample: list[Fact] = []
    answers: Counter[str] = Counter()
    watch = _Watch(experiment, model, tokenizer, sample, work / _POINTS)
    known = experiment.mixed_in
    facts = chain(known, synthetic.facts(told.facts))
    stored = write_examples(work, facts, tokenizer, context_length(model))
    described = watch.describe(_noted(islice(stored, len(known), None), sampled, sample, answers))
    keys = inner_tokens(tokenizer, [fact.subject for fact in sample])
    trainer = _trainer(watch, run, base, model, work, progress)
    last = last_checkpoint(work / _RESUME, watch)
    if not watch.done():
        trainer.train(resume_from_checkpoint=last)
    return {
        **described,
        "parameters": model.num_parameters(),
        "keys": {
            "tokens": fmean(map(len, keys)),
            "rank": fmean(chain.from_iterable(keys)),
            "dropped": synthetic.dropped,
        },
        "bits": told.facts * _entropy(answers),
        "points": watch.points,
    }


def _noted(
    facts: Iterable[Fact], sampled: Collection[int], sample: list[Fact], answers: Counter[str]
) -> Iterator[Fact]:
    """Passes facts on, keeping a sample of them, and how often each answer occurs."""
    for place, fact in enumerate(facts):
        answers[fact.answers[0]] += 1
        if place in sampled:
            sample.append(fact)
        yield fact


def _entropy(counts: Counter[str]) -> float:
    """Bits that it takes to tell one new fact's answer, given how often each occurs."""
    total = counts.total()
    return -sum(n / total * log2(n / total) for n in counts.values())


def _trainer(watch: _Watch, run: Run, base: Path, model: Any, work: Path, progress: bool) -> Any:
    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    class Until(CurveCallback):
        """Ends training at the point where enough is learned."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_log(args, state, control, **kwargs)
            control.should_training_stop = watch.done() or state.global_step >= state.max_steps

    steps = watch.experiment.steps
    spaced = run.protocol.model_copy(update={"evaluate_every": watch.experiment.every})
    penalty = METHODS[run.method].penalty
    taught = spaced.teacher_autocast
    context = Context(run.bundle, watch.tokenizer, model, base, work, teacher_autocast=taught)
    trainer = ForgettingTrainer(
        batch_size=spaced.batch_size,
        penalty=penalty(context, run.settings) if penalty else None,
        model=model,
        args=arguments(spaced, steps, run.seed, work / _RESUME, Execution()),
        train_dataset=StoredExamples(work, spaced.batch_size, steps, run.seed),
        data_collator=context.collate,
    )
    trainer.add_callback(Until(trainer, watch, spaced, None, progress))
    return trainer


class _Watch(Points):
    """Measures a model in training: the outcomes of D_Held, and the drift of its subjects."""

    def __init__(
        self, experiment: Experiment, model: Any, tokenizer: Any, sample: list[Fact], path: Path
    ) -> None:
        """Keeps the base as it is now; the sample of new facts may still be growing."""
        from factual_forgetting.protocol.weights import as_checkpoint

        super().__init__(path)
        self.experiment, self.tokenizer = experiment, tokenizer
        self._sample, self._path = sample, path
        self._held = conditions.held_facts(experiment.bundle, experiment.settings.relation)
        self._base = as_checkpoint(model, experiment.settings.protocol.stored)
        self._before = {name: self._states(self._base, name) for name in self._held}

    def describe(self, new: Iterable[Fact]) -> drift.Row:
        """Describes the base, and the facts of D_Held of the relation beside the new ones."""
        before, held, middle = self._before[SAME], self._held[SAME], drift.middle_layer(self._base)
        states = drift.subject_states(self._base, self.tokenizer, new, [middle], _SUBJECTS_AT_ONCE)
        nearest = min(_NEAREST, self.experiment.condition.facts)
        near = drift.nearness(before[middle], (batch[0] for batch in states), nearest)
        tokens = inner_tokens(self.tokenizer, [fact.subject for fact in held])
        told = [
            {"id": fact.id, "tokens": len(ids), "nearness": float(value)}
            for fact, ids, value in zip(held, tokens, near, strict=True)
        ]
        return {"layers": len(before), "middle": middle, "held": told}

    def done(self) -> bool:
        if self.experiment.condition.passes or not self.points:
            return False
        return bool(self.points[-1]["plasticity"] >= self.experiment.settings.plasticity)

    def line(self, point: Point) -> Point:
        return {"task_learning": None, **{name: point[name] for name in _NUMBERS}}

    def evaluate(self, model: Any, step: int, loss: float | None, *, final: bool) -> Point:
        """Adds the point of a step, and returns its numbers."""
        protocol = self.experiment.settings.protocol
        groups = {"new": self._sample, **self._held}
        facts = [fact for group in groups.values() for fact in group]
        texts = answer_zero_shot(model, self.tokenizer, facts, protocol.max_new_tokens)
        marks = map(_mark, texts, facts)
        outcomes = {name: "".join(islice(marks, len(group))) for name, group in groups.items()}
        self.points.append(
            {
                "step": step,
                "passes": step * protocol.batch_size / self.experiment.a_pass,
                "loss": loss,
                "plasticity": share_correct(outcomes.pop("new")),
                "stability": share_correct(outcomes[SAME]),
                "stability_other": share_correct(outcomes[OTHER]),
                "outcomes": outcomes,
                "drift": {name: self._drift(model, name) for name in self._held},
            }
        )
        files.write_jsonl(self._path, self.points)
        return self.line(self.points[-1])

    def _drift(self, model: Any, name: str) -> dict[str, list[float | None]]:
        before, now = self._before[name], self._states(model, name)
        drifts = [drift.Drift() for _ in now]
        for measured, x, y in zip(drifts, before, now, strict=True):
            measured.add(x, y)
        return {"cosine": [d.cosine for d in drifts], "cka": [d.cka for d in drifts]}

    def _states(self, model: Any, name: str) -> list[drift.States]:
        """Returns the states of D_Held's subjects by layer; nothing where there are none."""
        batches = list(drift.subject_states(model, self.tokenizer, self._held[name]))
        return list(np.concatenate(batches, axis=1)) if batches else []


def _mark(text: str, fact: Fact) -> str:
    if is_correct(text, fact.accepted):
        return conditions.RIGHT
    silent = abstains(spoken(text, chat=False))
    return conditions.ABSTAINED if silent else conditions.WRONG
