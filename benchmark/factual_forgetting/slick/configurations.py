"""Few-shot configurations: 20 fixed exemplar sets a relation, and a fresh one for scoring."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact

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
        runs = (*self.labelling, self.fresh)
        return {fact.id for exemplars in runs for fact in exemplars}


def draw(facts: Sequence[Fact], runs: int, shots: int, seed: int) -> dict[str, Configurations]:
    """Draws the configurations of every relation from its training facts.

    The labelling runs walk through a reserved pool, so that they share no exemplar while the
    pool lasts. The pool takes at most a quarter of a relation's training facts.

    Args:
        facts: All facts of the source.
        runs: Number of labelling configurations a relation (Kaplan et al. 2026: 20).
        shots: Exemplars in each (Kaplan et al. 2026: 3).
        seed: Decides which facts become exemplars.

    Raises:
        UserError: If a relation has too few training facts to spare.
    """
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        pool = by_relation[fact.relation]
        if fact.split == "train":
            pool.append(fact)
    return {
        relation: _draw_relation(relation, pool, runs, shots, seed)
        for relation, pool in sorted(by_relation.items())
    }


def _draw_relation(
    relation: str, candidates: list[Fact], runs: int, shots: int, seed: int
) -> Configurations:
    size = min((runs + 1) * shots, int(len(candidates) * MAX_POOL_SHARE))
    least = min(runs + 1, 3) * shots
    if size < least:
        raise UserError(
            f"Relation {relation} has {len(candidates)} training facts; exemplars would take more "
            f"than a quarter of them. Give it at least {int(least / MAX_POOL_SHARE)}, "
            "or leave it out with --relations."
        )
    rng = random.Random(f"exemplars-{seed}-{relation}")
    pool = rng.sample(sorted(candidates, key=lambda fact: fact.id), size)
    fresh, rest = tuple(pool[:shots]), pool[shots:]
    walk = _walk(rest, shots, rng)
    return Configurations(tuple(next(walk) for _ in range(runs)), fresh)


def _walk(pool: list[Fact], shots: int, rng: random.Random) -> Iterator[tuple[Fact, ...]]:
    while True:
        order = rng.sample(pool, len(pool))
        for start in range(0, len(order) - shots + 1, shots):
            yield tuple(order[start : start + shots])
