"""Are the intervals of `compare` honest? The base's known facts are chosen, and --quick stops.

    python scripts/sim_compare.py [--repetitions 1000]

Draws facts that the base has right with a chance of their own in any prompt, most of them nearly
always or nearly never, and a checkpoint that forgot some of them. The known ones are those that
the base has right in five prompts; both models are then asked in another one. Prints how often
the nominal 95 % intervals hold the truth, which is that of all facts that could be drawn:

- net, lost and S from all facts, and net as `--quick` stops;
- the facts that `--quick` asked, and its half width at the end, on average;
- for contrast, the net loss where the base is taken at its word, as right in whatever it is known
  for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate
from tqdm import tqdm

from factual_forgetting.comparison.comparing import CLOSE_ENOUGH, FIRST_PORTION, next_size
from factual_forgetting.scoring.statistics import Estimate, mean_difference, proportion

RUNS = 5
RELATIONS = 8
FACTS = 6000
POOL = 400_000  # stands for all facts that could be drawn

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """What the checkpoint forgot: a share of what it could, and how relations differ in that."""

    forgotten: float
    noise: float  # share of facts whose chance is drawn anew
    spread: float  # of relations, in log-odds
    facts: int


class Drawn(NamedTuple):
    """Facts in the order of asking, with their outcomes."""

    relation: NDArray[np.int64]
    known: Bools
    base: Bools
    tuned: Bools


CASES = [
    Case(forgotten, noise, spread, facts)
    for forgotten, noise in ((0.0, 0.0), (0.0, 0.1), (0.03, 0.05), (0.1, 0.1), (0.3, 0.1))
    for spread in (0.0, 1.0)
    for facts in (1000, FACTS)
]


def draw(case: Case, facts: int, rng: np.random.Generator) -> Drawn:
    """Relations differ in size, in how well they are known, and in what is forgotten of them."""
    shares = np.linspace(1, 6, RELATIONS)
    places = np.concatenate(
        [
            np.c_[(np.arange(n) + 0.5) / n, np.full(n, number)]
            for number, n in enumerate(np.round(facts * shares / shares.sum()).astype(int))
        ]
    )
    relation = places[places[:, 0].argsort(kind="stable"), 1].astype(np.int64)
    fixed = np.random.default_rng(11)
    level = fixed.uniform(0.25, 0.75, RELATIONS)[relation]
    chance = rng.beta(0.6 * level, 0.6 * (1 - level))
    odds = np.log(case.forgotten / (1 - case.forgotten)) if case.forgotten else -np.inf
    lost = 1 / (1 + np.exp(-(odds + case.spread * fixed.normal(0, 1, RELATIONS))))
    known = rng.random((RUNS, len(chance))).max(0) < chance
    same = rng.random(len(chance))  # a prompt is as hard for both
    anew = rng.random(len(chance)) < case.noise
    tuned = np.where(anew, rng.beta(0.6 * level, 0.6 * (1 - level)), chance)
    kept = rng.random(len(chance)) >= lost[relation]
    return Drawn(relation, known, same < chance, (same < tuned) & kept)


def net(drawn: Drawn, first: int | None = None) -> Estimate | None:
    """The net loss over the known ones of the first facts."""
    use = np.flatnonzero(drawn.known[:first])
    return mean_difference(_minus(drawn, use), _names(drawn, use))


def _minus(drawn: Drawn, use: NDArray[np.int64]) -> list[float]:
    return (drawn.base[use].astype(float) - drawn.tuned[use]).tolist()


def _names(drawn: Drawn, use: NDArray[np.int64]) -> list[str]:
    return drawn.relation[use].astype(str).tolist()


def lost(drawn: Drawn) -> Estimate | None:
    use = np.flatnonzero(drawn.known & drawn.base)
    return proportion((~drawn.tuned[use]).astype(float).tolist(), _names(drawn, use))


def stability(drawn: Drawn) -> Estimate | None:
    use = np.flatnonzero(drawn.known)
    return proportion(drawn.tuned[use].astype(float).tolist(), _names(drawn, use))


def at_its_word(drawn: Drawn) -> Estimate | None:
    use = np.flatnonzero(drawn.known)
    return mean_difference((~drawn.tuned[use]).astype(float).tolist(), _names(drawn, use))


def half_width(found: Estimate | None) -> float:
    return max(found.high - found.value, found.value - found.low) if found else np.inf


def quick(drawn: Drawn) -> tuple[Estimate | None, int]:
    """What `--quick` finds, and how many facts it asked."""
    most = len(drawn.known)
    size = min(FIRST_PORTION, most)
    while half_width(found := net(drawn, size)) > CLOSE_ENOUGH and size < most:
        size = min(next_size(size, half_width(found)), most)
    return found, size


def holds(found: Estimate | None, truth: float) -> bool:
    return found is not None and found.low <= truth <= found.high


def row(case: Case, repetitions: int) -> list[str]:
    """Coverages of one case in percent."""
    whole = draw(case, POOL, np.random.default_rng(1))
    known, right = whole.known, whole.known & whole.base
    truth = float(whole.base[known].mean() - whole.tuned[known].mean())
    truths = [truth, float((~whole.tuned[right]).mean()), float(whole.tuned[known].mean())]
    rng = np.random.default_rng(7)
    inside, stopped = [], []
    for _ in range(repetitions):
        drawn = draw(case, case.facts, rng)
        early, asked = quick(drawn)
        found = [net(drawn), lost(drawn), stability(drawn)]
        held = [holds(one, true) for one, true in zip(found, truths, strict=True)]
        inside.append([*held, holds(early, truth), holds(at_its_word(drawn), truth)])
        stopped.append([asked, half_width(early)])
    shares = [f"{100 * share:.1f}" for share in np.mean(inside, axis=0)]
    asked, width = np.mean(stopped, axis=0)
    named = [f"{case.forgotten:g}", f"{case.noise:g}", f"{case.spread:g}", f"{case.facts:,}"]
    return [*named, f"{truth:.3f}", *shares, f"{asked:,.0f}", f"{width:.3f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args(arguments).repetitions
    headers = ["forgotten", "noise", "spread", "facts", "true net", "net", "lost", "S"]
    headers += ["net, quick", "at its word", "asked", "half width"]
    rows = [row(case, repetitions) for case in tqdm(CASES, leave=False)]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
