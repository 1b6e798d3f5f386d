"""Are the intervals honest? Simulates facts redrawn within fixed relations and counts coverage.

    python scripts/sim_intervals.py [--repetitions 1000]

Prints, for each true value and number of facts, the share of nominal 95 % intervals that hold
the truth. The last column draws the number of facts anew from 200 to 2,000 in each repetition.
Outcomes are counts, so near 1 a cell can only take some values: an interval holds the truth for
a whole number of errors more or fewer. The column "all" evens that out; the second table gives,
for those cells, the two coverages next to 95 % that intervals ending at whole counts can have.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from tabulate import tabulate

from factual_forgetting.scoring.statistics import Estimate, mean_difference, proportion

RELATIONS = 12
SPREAD = 1.0  # standard deviation of the relations' log-odds
SIZES = (200, 300, 500, 1000, 2000)
STABILITIES = (0.5, 0.9, 0.99, 0.999)
# Share lost and share gained.
CHANGES = ((0.3, 0.1), (0.1, 0.02), (0.03, 0.0), (0.01, 0.01), (0.01, 0.0), (0.002, 0.0))


def relation_shares(mean: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Fixed shares of the relations, spread in log-odds around a mean."""
    noise = rng.normal(0, SPREAD, RELATIONS)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        small = (1 / (1 + np.exp(-(middle + noise)))).mean() < mean
        low, high = (middle, high) if small else (low, middle)
    return 1 / (1 + np.exp(-(low + noise)))


def strata(n: int) -> NDArray[np.int64]:
    """Relations of n facts, the largest three times the smallest."""
    ends = np.linspace(1, 3, RELATIONS).cumsum()
    return np.searchsorted(ends / ends[-1], (np.arange(n) + 0.5) / n)


def stability_holds(mean: float, n: int, macro: bool, rng: np.random.Generator) -> bool:
    shares = relation_shares(mean, np.random.default_rng(3))
    relation = strata(n)
    outcomes = rng.random(n) < shares[relation]
    truth = shares.mean() if macro else shares[relation].mean()
    return holds(proportion(outcomes.tolist(), relation.astype(str).tolist(), macro=macro), truth)


def change_holds(lost: float, gained: float, n: int, rng: np.random.Generator) -> bool:
    weights = np.random.default_rng(5).lognormal(0, 0.5, RELATIONS)
    weights /= weights.mean()
    relation = strata(n)
    losing, gaining = lost * weights[relation], gained * weights[relation]
    draw = rng.random(n)
    values = np.where(draw < losing, 1.0, np.where(draw < losing + gaining, -1.0, 0.0))
    truth = float((losing - gaining).mean())
    return holds(mean_difference(values.tolist(), relation.astype(str).tolist()), truth)


def holds(estimate: Estimate | None, truth: float) -> bool:
    return estimate is not None and estimate.low <= truth <= estimate.high


def coverage(case, repetitions: int) -> list[str]:
    """Coverage in percent for each size, and for sizes drawn anew."""
    cells = []
    for size in (*SIZES, None):
        rng = np.random.default_rng(size or 0)
        hits = sum(case(size or int(rng.integers(200, 2001)), rng) for _ in range(repetitions))
        cells.append(f"{100 * hits / repetitions:.1f}")
    return cells


def reachable(mean: float, n: int) -> str:
    """The coverages next to 95 % of intervals that hold the truth up to k errors."""
    tails = binom.cdf(np.arange(n + 1), n, 1 - mean)
    return f"{100 * tails[tails < 0.95][-1]:.1f} or {100 * tails[tails >= 0.95][0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    headers = ["truth", *map(str, SIZES), "all"]
    rows = []
    for mean in STABILITIES:
        for macro in (False, True):
            name = f"S {mean}{' (mean over relations)' if macro else ''}"
            case = lambda n, rng, m=mean, k=macro: stability_holds(m, n, k, rng)  # noqa: E731
            rows.append([name, *coverage(case, repetitions)])
    for lost, gained in CHANGES:
        case = lambda n, rng, a=lost, b=gained: change_holds(a, b, n, rng)  # noqa: E731
        rows.append([f"lost {lost}, gained {gained}", *coverage(case, repetitions)])
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    table = [["S 0.999", *(reachable(0.999, n) for n in SIZES)]]
    print("\n" + tabulate(table, headers=["truth", *map(str, SIZES)], tablefmt="github"))


if __name__ == "__main__":
    main()
