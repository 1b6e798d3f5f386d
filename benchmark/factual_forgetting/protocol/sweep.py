"""Many runs from one file: methods x rates x strengths x seeds, chosen on validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, PositiveFloat, model_validator
from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.config import Config, Many
from factual_forgetting.errors import InputError
from factual_forgetting.protocol.curve import CHOSEN_BY, read_curve, selection_score
from factual_forgetting.protocol.grid import Trial, trials
from factual_forgetting.protocol.recipe import Execution, Protocol, load_protocol
from factual_forgetting.protocol.run import CHOSEN, PARTIAL_RUN, RUN, RUNS, Run
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.protocol.train import finetune, rehearse


class Arm(Config, strict=True):
    """A key of `settings.SETTINGS` with settings, and the arm's name in paths and tables."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    method: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Sweep(Config, strict=True):
    """What a sweep runs.

    Attributes:
        bundle: Directory of the bundle, or `almanac`.
        protocol: Name or file of the protocol, whose grid is tried.
        learning_rates: Another grid of rates; the runs are on the open track then.
        strengths: Another grid of strengths; likewise.
        arms: The methods.
        seeds: Seeds of every trial.
        choosing_seeds: Those of them whose runs choose; the others then train the chosen trial
            alone. All, where none is named.
    """

    bundle: str
    protocol: str
    learning_rates: Many[PositiveFloat] = ()
    strengths: Many[PositiveFloat] = ()
    arms: Many[Arm] = Field(min_length=1)
    seeds: Many[int] = Field(min_length=1)
    choosing_seeds: Many[int] = ()

    @model_validator(mode="after")
    def _some_choose(self) -> Sweep:
        if not set(self.choosing_seeds) <= set(self.seeds):
            raise ValueError("choosing_seeds are none of seeds")
        return self

    def resolved(self) -> Protocol:
        """Returns the protocol with this sweep's grid."""
        changed = self.model_dump(include={"learning_rates", "strengths"}, exclude_defaults=True)
        if self.learning_rates:
            changed["learning_rate"] = self.learning_rates[0]
        return load_protocol(self.protocol).model_copy(update=changed)


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep: what an arm trains at a point of the grid, and in which directory.

    Runs that don't choose are trained for the chosen trial alone.
    """

    arm: str
    trial: Trial
    run: Run
    path: Path
    chooses: bool = True

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return (self.path / RUN).exists() and not (self.path / PARTIAL_RUN).exists()


def sweep_runs(sweep: Sweep, bundle: Bundle, output: Path) -> list[SweepRun]:
    """Lists every run of a sweep, the first seed of everything first.

    Raises:
        UserError: If a name occurs twice, a method or setting is unknown, or the bundle lacks
            facts to choose by.
    """
    names = [arm.name for arm in sweep.arms]
    if len(set(names)) != len(names):
        raise InputError(f"Arms of a sweep need names of their own; there are {', '.join(names)}.")
    bundle.require(CHOSEN_BY, "A sweep")
    protocol, found = sweep.resolved(), []
    for seed, arm in product(sweep.seeds, sweep.arms):
        settings = resolve(arm.method, arm.settings)
        for trial in trials(protocol, arm.method):
            recipe, tried = trial.apply(protocol, settings)
            run = Run(bundle, recipe, arm.method, tried, seed)
            name = f"{trial.learning_rate:g}-{trial.strength:g}-{seed}"
            chooses = seed in (sweep.choosing_seeds or sweep.seeds)
            path = output / RUNS / files.portable(arm.name) / name
            found.append(SweepRun(arm.name, trial, run, path, chooses))
    return found


def plan_sweep(
    runs: Iterable[SweepRun], execution: Execution, steps: int = 4
) -> list[dict[str, Any]]:
    """Tells for each arm its runs, those that are done, and the seconds that the rest will take.

    Args:
        runs: The runs of a sweep.
        execution: How they would be computed.
        steps: Optimizer steps to measure; one run of each arm is tried for so long.
    """
    rows = []
    for arm, every in _grouped(runs, attrgetter("arm")).items():
        group = _due(every)
        missing = [found for found in group if not found.done]
        seconds = rehearse(missing[0].run, execution, steps) * len(missing) if missing else 0.0
        done = len(group) - len(missing)
        rows.append({"arm": arm, "runs": len(group), "done": done, "seconds": seconds})
    return rows


def _due(runs: Iterable[SweepRun]) -> list[SweepRun]:
    """Those of an arm that will be trained; before the choice any trial stands for the chosen."""
    choosing = [found for found in runs if found.chooses]
    others = _grouped((found for found in runs if not found.chooses), attrgetter("run.seed"))
    return choosing + [next((one for one in of if one.done), of[0]) for of in others.values()]


def run_all(runs: Sequence[SweepRun], output: Path, execution: Execution) -> dict[str, Any]:
    """Trains what isn't done, chooses, and returns the choice as it stands in `chosen.json`."""
    _train_all([found for found in runs if found.chooses], execution)
    chosen = choose(runs, output)
    names = {name for row in chosen.values() for name in row["runs"]}
    _train_all([one for one in runs if str(one.path.relative_to(output)) in names], execution)
    files.write_json(output / CHOSEN, chosen)
    return chosen


def _train_all(runs: Sequence[SweepRun], execution: Execution) -> None:
    missing = [found for found in runs if not found.done]
    done = len(runs) - len(missing)
    for found in tqdm(missing, desc="sweep", unit="run", initial=done, total=len(runs)):
        finetune(found.run, found.path, execution=execution, progress=False)


def choose(runs: Iterable[SweepRun], output: Path) -> dict[str, Any]:
    """Chooses each arm's trial by S on validation and P on D_Unk, never by D_Held.

    Returns for each arm the rate, the strength, the score by which it was chosen (a mean over
    the seeds that choose), the number of trials, and the chosen runs, relative to the sweep's
    directory.
    """
    chosen = {}
    for arm, group in _grouped(runs, attrgetter("arm")).items():
        by_trial = _grouped(group, attrgetter("trial"))
        scores = {
            trial: fmean(_score(found) for found in tried if found.chooses)
            for trial, tried in by_trial.items()
        }
        best = max(scores, key=lambda trial: scores[trial])
        chosen[arm] = {
            **asdict(best),
            "score": scores[best],
            "trials": len(scores),
            "runs": [str(found.path.relative_to(output)) for found in by_trial[best]],
        }
    return chosen


def _score(found: SweepRun) -> float:
    return selection_score(read_curve(found.path)[-1])


def _grouped(runs: Iterable[SweepRun], key: Callable[[SweepRun], Any]) -> dict[Any, list[SweepRun]]:
    groups = defaultdict(list)
    for found in runs:
        groups[key(found)].append(found)
    return groups
