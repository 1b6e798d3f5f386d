"""Are the intervals honest? Simulates facts redrawn within fixed relations and counts coverage.

    python scripts/sim_intervals.py [--repetitions 1000]

Prints, for each true value and number of facts, the share of nominal 95 % intervals that hold
the truth; the last column draws the number of facts anew from 200 to 2,000 each time. Outcomes
are whole facts. Near 0 and 1 an interval holds the truth up to one error more or fewer, and no
coverage between is to be had: the second table gives, cell by cell, the two next to 95 % that
the acceptance of any run of neighbouring estimates can reach. A cell outside 93-97 % is
marked: too low (!!), higher than need be (+), or on the safe side as nothing inside can be had
(=).

The third table is over seeds too: seeds move the true share by a normal's spread, and some facts
fall otherwise in each. The last one counts how often methods that are equally good are parted by
the board's ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate
from tqdm import tqdm

from factual_forgetting.board.ranking import Ranked, ranks, resample_counts
from factual_forgetting.scoring.statistics import (
    Estimate,
    mean_difference,
    over_seeds,
    proportion,
)

RELATIONS = 12
SPREAD = 1.0  # standard deviation of the relations' log-odds
SIZES = (200, 300, 500, 1000, 2000)
STABILITIES = (0.5, 0.9, 0.99, 0.999)
# Share lost and share gained.
CHANGES = ((0.3, 0.1), (0.1, 0.02), (0.03, 0.0), (0.01, 0.01), (0.01, 0.0), (0.002, 0.0))
INSIDE = (0.93, 0.97)
DRAWS = 200_000
SEEDS = (1, 3, 5, 10)
SPREADS = ((0.5, 0.0), (0.5, 0.03), (0.9, 0.0), (0.9, 0.01), (0.9, 0.03), (0.98, 0.005))
PER_SEED = 0.15  # share of facts that fall anew in each seed, as in the published records
EQUAL = (2, 5, 10, 20)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A true mean: outcomes of 1, 0 and -1 with a share of each relation's own."""

    name: str
    plus: float
    minus: float = 0.0
    macro: bool = False
    paired: bool = False
    largest: float = 3.0  # relation, in facts of the smallest

    def sizes(self, n: int) -> NDArray[np.int64]:
        """Facts by relation, n together."""
        ends = np.linspace(1, self.largest, RELATIONS).cumsum()
        return np.diff(np.round(n * ends / ends[-1]).astype(int), prepend=0)

    def shares(self, sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Shares of 1 and of -1 by relation, whose weighted means are those of the case."""
        weights = np.full(RELATIONS, 1 / RELATIONS) if self.macro else sizes / sizes.sum()
        if self.paired:
            factors = np.random.default_rng(5).lognormal(0, 0.5, RELATIONS)
            factors /= weights @ factors
            return self.plus * factors, self.minus * factors
        return _spread(self.plus, weights), np.zeros(RELATIONS)

    def estimate(self, values: Floats, relations: list[str]) -> Estimate | None:
        if self.paired:
            return mean_difference(values.tolist(), relations)
        return proportion(values.tolist(), relations, macro=self.macro)


CASES = [
    *(Case(f"S {mean}", mean) for mean in STABILITIES),
    *(Case(f"S {mean}, by relation", mean, macro=True) for mean in STABILITIES),
    *(Case(f"S {mean}, by relation 1:10", mean, macro=True, largest=10) for mean in STABILITIES),
    *(Case(f"lost {plus}, gained {minus}", plus, minus, paired=True) for plus, minus in CHANGES),
]


def _spread(mean: float, weights: Floats) -> Floats:
    """Shares spread in log-odds, with a weighted mean."""
    noise = np.random.default_rng(3).normal(0, SPREAD, RELATIONS)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        small = weights @ (1 / (1 + np.exp(-(middle + noise)))) < mean
        low, high = (middle, high) if small else (low, middle)
    return 1 / (1 + np.exp(-(low + noise)))


def holds(case: Case, n: int, rng: np.random.Generator) -> bool:
    """Whether the interval over facts drawn anew holds the truth."""
    sizes = case.sizes(n)
    plus, minus = (np.repeat(shares, sizes) for shares in case.shares(sizes))
    draw = rng.random(n)
    values = np.where(draw < plus, 1.0, np.where(draw < plus + minus, -1.0, 0.0))
    estimate = case.estimate(values, np.repeat(np.arange(RELATIONS), sizes).astype(str).tolist())
    truth = case.plus - case.minus
    return estimate is not None and estimate.low <= truth <= estimate.high


def coverage(case: Case, size: int | None, repetitions: int) -> float:
    """Share of intervals that hold the truth; without a size, over sizes drawn anew."""
    rng = np.random.default_rng(size or 0)
    sizes = (size or int(rng.integers(200, 2001)) for _ in range(repetitions))
    return sum(holds(case, n, rng) for n in sizes) / repetitions


def over_some_seeds(
    mean: float, spread: float, seeds: int, latent: Floats, rng: np.random.Generator
) -> Floats:
    """Outcomes of shape (seeds, facts) of a method whose seeds have shares of their own."""
    shares = mean + rng.normal(0, spread, (seeds, 1))
    own = rng.random((seeds, len(latent))) < PER_SEED
    return (np.where(own, rng.random(own.shape), latent) < shares).astype(float)


def seeds_coverage(mean: float, spread: float, seeds: int, repetitions: int) -> float:
    """Share of the intervals over facts and seeds that hold the true share."""
    rng = np.random.default_rng(seeds)
    strata = [str(index % RELATIONS) for index in range(500)]
    held = 0
    for _ in range(repetitions):
        drawn = over_some_seeds(mean, spread, seeds, rng.random(500), rng)
        over_facts = proportion(drawn.mean(axis=0).tolist(), strata)
        assert over_facts is not None
        found = over_seeds(over_facts, drawn.mean(axis=1).tolist())
        held += found.low <= mean <= found.high
    return held / repetitions


def parted(methods: int, spread: float, seeds: int, repetitions: int) -> float:
    """Share of the boards of equally good methods on which some are told apart."""
    rng = np.random.default_rng(methods)
    counts = resample_counts([str(index % RELATIONS) for index in range(500)], 1)
    wrong = 0
    for _ in range(repetitions):
        latent = rng.random(500)
        drawn = [over_some_seeds(0.85, spread, seeds, latent, rng) for _ in range(methods)]
        means = counts @ np.array([one.mean(axis=0) for one in drawn], dtype=np.float32).T / 500
        told = [
            Ranked(mean.astype(float), one.mean(axis=1).tolist(), 500)
            for mean, one in zip(means.T, drawn, strict=True)
        ]
        wrong += max(ranks(told)) > 1
    return wrong / repetitions


def seeds_tables(repetitions: int) -> str:
    covered = [
        [f"S {mean}, seeds {spread}"]
        + [f"{100 * seeds_coverage(mean, spread, seeds, repetitions):.1f}" for seeds in SEEDS]
        for mean, spread in tqdm(SPREADS, leave=False)
    ]
    apart = [
        [f"{seeds} seeds, spread {spread}"]
        + [f"{100 * parted(methods, spread, seeds, repetitions // 4):.1f}" for methods in EQUAL]
        for seeds, spread in tqdm(((1, 0.0), (3, 0.0), (3, 0.01), (3, 0.03)), leave=False)
    ]
    first = tabulate(covered, ["truth", *map(str, SEEDS)], "github", disable_numparse=True)
    second = tabulate(apart, ["methods", *map(str, EQUAL)], "github", disable_numparse=True)
    return (
        f"Coverage by number of seeds, 500 facts\n\n{first}\n\nBoards that part equals\n\n{second}"
    )


def reachable(case: Case, n: int) -> tuple[float, float]:
    """The coverages next to 95 %, below and above, of runs of neighbouring estimates."""
    sizes, rng = case.sizes(n), np.random.default_rng(n)
    plus, minus = case.shares(sizes)
    right = rng.binomial(sizes, plus, (DRAWS, RELATIONS))
    wrong = rng.binomial(sizes - right, minus / (1 - plus))
    divisor = sizes * RELATIONS if case.macro else np.full(RELATIONS, n)
    _, counts = np.unique(np.round(((right - wrong) / divisor).sum(1), 9), return_counts=True)
    ends = np.concatenate([[0.0], counts.cumsum() / DRAWS])
    after = np.searchsorted(ends, ends + 0.95)
    below = (ends[after - 1] - ends).max()
    above = (ends[after[after < len(ends)]] - ends[after < len(ends)]).min()
    return float(below), float(above)


def mark(found: float, reach: tuple[float, float]) -> str:
    """The coverage in percent, with a mark where it isn't inside."""
    low, high = INSIDE
    if low <= found <= high:
        return f"{100 * found:.1f}"
    possible = any(low <= share <= high for share in reach)
    return f"{100 * found:.1f} {'!!' if found < low else '+' if possible else '='}"


def table(cell: Callable[[Case, int], str], last: Callable[[Case], str] | None) -> str:
    headers = ["truth", *map(str, SIZES), *(["all"] if last else [])]
    rows = [
        [case.name, *(cell(case, n) for n in SIZES), *([last(case)] if last else [])]
        for case in tqdm(CASES, leave=False)
    ]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seeds", action="store_true", help="the last two tables alone")
    args = parser.parse_args()
    repetitions = args.repetitions
    if args.seeds:
        print(seeds_tables(repetitions))
        return
    reach = {(case, n): reachable(case, n) for case in tqdm(CASES, leave=False) for n in SIZES}
    print(
        table(
            lambda case, n: mark(coverage(case, n, repetitions), reach[case, n]),
            lambda case: f"{100 * coverage(case, None, repetitions):.1f}",
        )
    )
    print("\nCoverages next to 95 % that can be had\n")
    print(table(lambda case, n: " / ".join(f"{100 * share:.1f}" for share in reach[case, n]), None))
    print(f"\n{seeds_tables(repetitions)}")


if __name__ == "__main__":
    main()
