"""The account of a source: by relation what was kept, and what a constant answer would score."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from factual_forgetting.facts.cleaning import Cleaned, answer_in_subject
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import AnswerKey, normalise
from factual_forgetting.facts.store import StoredFacts


@dataclass(frozen=True)
class Profile:
    """What the answers of some facts look like.

    Attributes:
        facts: Number of facts.
        answers: Number of distinct first golds, in normal form.
        majority: The most frequent first gold; None without facts.
        majority_share: Share of facts with that first gold, in [0, 1].
        characters: Mean length of the first gold in characters.
        words: Mean length of the first gold in words.
        in_subject: Share of facts whose subject shows an accepted answer, in [0, 1].
    """

    facts: int
    answers: int
    majority: str | None
    majority_share: float | None
    characters: float | None
    words: float | None
    in_subject: float | None


def profile(facts: Sequence[Fact]) -> Profile:
    """Describes the answers of facts of one relation; without facts, what isn't a count is None."""
    if not facts:
        return Profile(0, 0, None, None, None, None, None)
    golds = [fact.answers[0] for fact in facts]
    counts = Counter(map(normalise, golds))
    majority = majority_answer(facts)
    return Profile(
        facts=len(facts),
        answers=len(counts),
        majority=majority,
        majority_share=counts[normalise(majority)] / len(facts),
        characters=fmean(map(len, golds)),
        words=fmean(len(gold.split()) for gold in golds),
        in_subject=fmean(map(answer_in_subject, facts)),
    )


def majority_answer(facts: Iterable[Fact]) -> str:
    """Returns the most frequent first gold of at least one fact, in its most frequent spelling.

    Ties go to the answer that sorts first.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        spellings[normalise(fact.answers[0])][fact.answers[0]] += 1
    form = min(spellings, key=lambda form: (-spellings[form].total(), form))
    return min(spellings[form], key=lambda text: (-spellings[form][text], text))


def by_relation(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Groups facts by relation, in the relations' order of name."""
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[fact.relation].append(fact)
    return dict(sorted(groups.items()))


def account(cleaned: Cleaned) -> dict[str, Any]:
    """Accounts for a source as plain data; one relation at a time is held in memory.

    Returns:
        `rules`: rows dropped by each rule that was on. `relations`: by relation `splits` (kept
        facts by split), `dropped` (rows by rule; with the kept facts they sum to the rows
        read), `read` and `kept` (a `Profile` each). `rows` and `facts`: totals.
    """
    dropped = {
        rule: Counter(row.relation for row in rows) for rule, rows in cleaned.dropped.items()
    }
    relations = {
        relation: {
            "splits": {},
            "dropped": {rule: counts[relation] for rule, counts in dropped.items()},
            "read": asdict(profile(rows)),
            "kept": asdict(profile([])),
        }
        for relation, rows in _relation_by_relation(cleaned.read)
    }
    for relation, facts in _relation_by_relation(cleaned.facts):
        relations[relation]["splits"] = dict(sorted(Counter(f.split for f in facts).items()))
        relations[relation]["kept"] = asdict(profile(facts))
    return {
        "rows": len(cleaned.read),
        "facts": len(cleaned.facts),
        "rules": {rule: len(rows) for rule, rows in cleaned.dropped.items()},
        "relations": relations,
    }


def _relation_by_relation(facts: StoredFacts) -> Iterator[tuple[str, list[Fact]]]:
    for relation, group in groupby(facts, attrgetter("relation")):
        yield relation, list(group)


def dropped_ids(cleaned: Cleaned) -> dict[str, list[str]]:
    """Returns the ids of the rows that each rule dropped or merged, sorted, each once.

    An id under `duplicates` or `several_splits` may still be kept: its other row was merged.
    """
    return {rule: sorted({row.id for row in rows}) for rule, rows in cleaned.dropped.items()}


def majority_baseline(train: Iterable[Fact], heldout: Iterable[Fact]) -> dict[str, Any]:
    """Scores the constant answer: of each relation the most frequent gold in training.

    Args:
        train: Facts that the majority answers are taken from.
        heldout: Facts to answer; a relation without training facts is answered wrongly.

    Returns:
        `relations` (relation to `answer`, `facts` and `accuracy` in [0, 1], aliases accepted),
        `micro` (over facts) and `macro` (over relations); null without held-out facts.
    """
    constants = {name: majority_answer(facts) for name, facts in by_relation(train).items()}
    groups = by_relation(heldout)
    right = {name: _hits(facts, constants.get(name)) for name, facts in groups.items()}
    accuracy = {name: right[name] / len(facts) for name, facts in groups.items()}
    total = sum(map(len, groups.values()))
    return {
        "relations": {
            name: {"answer": constants.get(name), "facts": len(facts), "accuracy": accuracy[name]}
            for name, facts in groups.items()
        },
        "micro": sum(right.values()) / total if total else None,
        "macro": fmean(accuracy.values()) if total else None,
    }


def _hits(facts: Sequence[Fact], answer: str | None) -> int:
    if answer is None:
        return 0
    return sum(AnswerKey(fact.accepted).accepts(answer) for fact in facts)


def has_majority_answer(fact: Fact, constants: Mapping[str, str]) -> bool:
    """Tells whether a fact's first gold is the majority answer of its relation."""
    answer = constants.get(fact.relation)
    return answer is not None and normalise(fact.answers[0]) == normalise(answer)


def answer_distance(some: Sequence[Fact], others: Sequence[Fact]) -> float:
    """Returns the total variation distance in [0, 1] between two answer distributions.

    Both of one relation and not empty; answers are first golds in normal form.
    """
    left, right = (Counter(normalise(f.answers[0]) for f in facts) for facts in (some, others))
    gaps = (abs(left[form] / len(some) - right[form] / len(others)) for form in {*left, *right})
    return sum(sorted(gaps)) / 2


def match_answers(
    pool: Sequence[Fact], target: Sequence[Fact], count: int, seed: int
) -> list[Fact]:
    """Draws facts whose answers are distributed as the target's, as nearly as the pool allows.

    Each answer gets the target's share of `count` (largest remainders), up to what the pool
    has; what is still missing is filled at random from the rest. No draw of this size comes
    closer in total variation, which `answer_distance` tells.

    Args:
        pool: Candidates of one relation, at least `count`.
        target: Facts of the same relation that set the distribution, at least one.
        count: Number of facts to draw.
        seed: Decides the draw.

    Returns:
        The facts drawn, ordered by id.
    """
    rng = random.Random(f"match-{seed}")
    shuffled = sorted(pool, key=lambda fact: fact.id)
    rng.shuffle(shuffled)
    quota = _quotas(Counter(normalise(fact.answers[0]) for fact in target), count)
    drawn, rest = [], []
    for fact in shuffled:
        form = normalise(fact.answers[0])
        if quota[form] > 0:
            quota[form] -= 1
            drawn.append(fact)
        else:
            rest.append(fact)
    return sorted(drawn + rest[: count - len(drawn)], key=lambda fact: fact.id)


def _quotas(counts: Counter[str], total: int) -> Counter[str]:
    size = counts.total()
    quotas = Counter({form: total * n // size for form, n in counts.items()})
    by_remainder = sorted(counts, key=lambda form: (-(total * counts[form] % size), form))
    for form in by_remainder[: total - quotas.total()]:
        quotas[form] += 1
    return quotas


def plot_account(told: Mapping[str, Any], path: Path) -> None:
    """Draws kept and dropped rows and the majority share by relation, as PNG or SVG by suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(told["relations"])[::-1]
    rows = [told["relations"][name] for name in names]
    figure = Figure(figsize=(10, 1.5 + 0.3 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    bars, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left = [row["kept"]["facts"] for row in rows]
    bars.barh(names, left, label="kept", color="#4477aa")
    rules = [rule for rule, count in told["rules"].items() if count]
    for rule, color in zip(rules, _COLORS, strict=False):
        widths = [row["dropped"][rule] for row in rows]
        bars.barh(names, widths, left=left, label=rule, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    bars.set(xlabel="rows")
    bars.margins(y=0.01)
    figure.legend(*bars.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    shares.barh(names, [row["kept"]["majority_share"] or 0 for row in rows], color="#bbbbbb")
    shares.set(xlabel="share of the majority answer", xlim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


_COLORS = (
    "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#882255",
    "#999933", "#332288", "#dddddd", "#44aa99",
)  # fmt: skip
