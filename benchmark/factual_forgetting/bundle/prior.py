"""The answer prior: how facts are distributed over answers, and a draw that follows others'."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import normalise


def _form(fact: Fact) -> str:
    return normalise(fact.answers[0])


def answer_distance(some: Sequence[Fact], others: Sequence[Fact]) -> float:
    """Returns the total variation distance in [0, 1] between two answer distributions.

    Both of one relation and not empty; answers are first golds in normal form.
    """
    left, right = Counter(map(_form, some)), Counter(map(_form, others))
    gaps = (abs(left[form] / len(some) - right[form] / len(others)) for form in {*left, *right})
    return sum(sorted(gaps)) / 2


def match_answers(
    pool: Iterable[Fact], target: Iterable[Fact], count: int, seed: int
) -> list[Fact]:
    """Draws facts whose answers are distributed as the target's, as nearly as the pool allows.

    Each answer gets the target's share of `count` (largest remainders), up to what the pool
    has; what is still missing is filled at random from the rest. No draw of this size comes
    closer in total variation, which `answer_distance` tells. The facts are ordered by id.

    Args:
        pool: Candidates of one relation, at least `count`.
        target: Facts of the same relation that set the distribution, at least one.
        count: Number of facts to draw.
        seed: Decides the draw.
    """
    shuffled = sorted(pool, key=lambda fact: fact.id)
    random.Random(f"match-{seed}").shuffle(shuffled)
    quota = _quotas(Counter(map(_form, target)), count)
    drawn, rest = [], []
    for fact in shuffled:
        if quota[_form(fact)] > 0:
            quota[_form(fact)] -= 1
            drawn.append(fact)
        else:
            rest.append(fact)
    return sorted(drawn + rest[: count - len(drawn)], key=lambda fact: fact.id)


def _quotas(counts: Counter[str], total: int) -> Counter[str]:
    size = counts.total()
    quotas = Counter({form: total * n // size for form, n in counts.items()})
    by_remainder = sorted(counts, key=lambda form: (-(total * counts[form] % size), form))
    quotas.update(by_remainder[: total - quotas.total()])
    return quotas
