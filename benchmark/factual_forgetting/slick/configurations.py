"""Few-shot configurations: 20 fixed exemplar sets a relation, and a fresh one for scoring."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact, stable_fraction

MAX_POOL_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Configurations:
    """The exemplars of one relation.

    Attributes:
        labelling: One tuple of exemplars for each labelling run.
        fresh: Exemplars outside all labelling runs. D_Held is chosen for being right in those
            runs, so any comparison in them would be biased; scores use this one.
    """

    labelling: tuple[tuple[Fact, ...], ...]
    fresh: tuple[Fact, ...]

    @property
    def ids(self) -> set[str]:
        """Ids of all exemplars; these facts are asked in no split."""
        return {fact.id for exemplars in (*self.labelling, self.fresh) for fact in exemplars}

    def for_question(self, fact: Fact, run: int, seed: int) -> tuple[Fact, ...]:
        """Draws exemplars of its own for one question and run, as Kaplan et al. 2026 do."""
        pool = sorted({e.id: e for exemplars in self.labelling for e in exemplars}.items())
        rng = random.Random(f"question-{seed}-{run}-{fact.id}")
        return tuple(exemplar for _, exemplar in rng.sample(pool, len(self.fresh)))


def draw_configurations(
    facts: Iterable[Fact], runs: int, shots: int, seed: int, questions: frozenset[str] = frozenset()
) -> dict[str, Configurations]:
    """Draws the configurations of every relation from its training facts.

    The labelling runs walk through a reserved pool, so that they share no exemplar while the
    pool lasts. The pool takes at most a quarter of a relation's training facts, unless the
    questions are given. The facts are read once, and only pools are kept. A relation with too
    few training facts to spare has none.

    Args:
        facts: All facts of the source.
        runs: Number of labelling configurations a relation (Kaplan et al. 2026: 20).
        shots: Exemplars in each (Kaplan et al. 2026: 3).
        seed: Decides which facts become exemplars.
        questions: Ids of facts that must not become exemplars.

    Raises:
        UserError: If no relation has enough training facts to spare.
    """
    pools: dict[str, list[tuple[float, str, Fact]]] = defaultdict(list)
    training: Counter[str] = Counter()
    for fact in facts:
        pool = pools[fact.relation]
        if fact.split == "train" and fact.id not in questions:
            training[fact.relation] += 1
            entry = (-stable_fraction("exemplar", seed, fact.id), fact.id, fact)
            full = len(pool) >= (runs + 1) * shots
            (heapq.heappushpop if full else heapq.heappush)(pool, entry)
    spared = {}
    for relation, pool in sorted(pools.items()):
        most = int(training[relation] * (1 if questions else MAX_POOL_SHARE))
        spared[relation] = [fact for *_, fact in sorted(pool)][max(0, len(pool) - most) :]
    least = min(runs + 1, 3) * shots
    enough = {name: pool for name, pool in spared.items() if len(pool) >= least}
    if spared and not enough:
        largest = max(map(len, spared.values()))
        raise InputError(
            f"No relation can spare the {least} training facts that are needed as exemplars (at "
            f"most {largest}): they may take a quarter, or the rest would go unasked. Give it at "
            f"least {int(least / MAX_POOL_SHARE)}, or lower --runs or --shots."
        )
    return {name: _of_relation(name, pool, runs, shots, seed) for name, pool in enough.items()}


def _of_relation(name: str, pool: list[Fact], runs: int, shots: int, seed: int) -> Configurations:
    walk = _walk(pool[shots:], shots, random.Random(f"exemplars-{seed}-{name}"))
    return Configurations(tuple(islice(walk, runs)), tuple(pool[:shots]))


def _walk(pool: list[Fact], shots: int, rng: random.Random) -> Iterator[tuple[Fact, ...]]:
    while True:
        shuffled = rng.sample(pool, len(pool))
        for start in range(0, len(shuffled) - shots + 1, shots):
            yield tuple(shuffled[start : start + shots])
