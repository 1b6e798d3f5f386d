"""The account of a source: by relation what was kept, and what a constant answer would score."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from factual_forgetting.facts.cleaning import Cleaned, answer_in_subject
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct, normalise
from factual_forgetting.plotting import new_figure, plain_text, save_figure


def profile(facts: Sequence[Fact]) -> dict[str, Any]:
    """Describes the answers of facts of one relation; without facts, what isn't a count is None.

    `facts` and `answers` are the number of facts and of distinct first golds in normal form,
    `majority` is the most frequent first gold, `majority_share` the share of facts with it,
    `characters` and `words` are the first gold's mean length, `in_subject` is the share of facts
    whose subject shows an accepted answer. Shares are in [0, 1].
    """
    if not facts:
        measured = ("majority", "majority_share", "characters", "words", "in_subject")
        return {"facts": 0, "answers": 0, **dict.fromkeys(measured)}
    golds = [fact.answers[0] for fact in facts]
    counts = Counter(map(normalise, golds))
    majority = majority_answer(facts)
    return {
        "facts": len(facts),
        "answers": len(counts),
        "majority": majority,
        "majority_share": counts[normalise(majority)] / len(facts),
        "characters": fmean(map(len, golds)),
        "words": fmean(len(gold.split()) for gold in golds),
        "in_subject": fmean(map(answer_in_subject, facts)),
    }


def majority_answer(facts: Iterable[Fact]) -> str:
    """Returns the most frequent first gold in its usual spelling; of ties the first by name."""
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

    `rules` are rows dropped by each rule that was on, `relations` by relation `splits` (kept
    facts by split), `dropped` (rows by rule; with the kept facts they sum to the rows read),
    `read` and `kept` (a `profile` each), `rows` and `facts` totals.
    """
    dropped = {rule: Counter(f.relation for f in facts) for rule, facts in cleaned.dropped.items()}
    relations = {
        relation: {
            "splits": {},
            "dropped": {rule: counts[relation] for rule, counts in dropped.items()},
            "read": profile(list(rows)),
            "kept": profile([]),
        }
        for relation, rows in groupby(cleaned.read, attrgetter("relation"))
    }
    for relation, group in groupby(cleaned.facts, attrgetter("relation")):
        facts = list(group)
        relations[relation]["splits"] = dict(sorted(Counter(f.split for f in facts).items()))
        relations[relation]["kept"] = profile(facts)
    return {
        "rows": len(cleaned.read),
        "facts": len(cleaned.facts),
        "rules": {rule: len(rows) for rule, rows in cleaned.dropped.items()},
        "relations": relations,
    }


def majority_answers(train: Iterable[Fact]) -> dict[str, str]:
    """Returns the majority answer of each relation of training facts, relations by name."""
    return {relation: majority_answer(facts) for relation, facts in by_relation(train).items()}


def has_majority_answer(fact: Fact, majority: Mapping[str, str]) -> bool:
    """Tells whether a fact's first gold is its relation's of `majority_answers`."""
    answer = majority.get(fact.relation)
    return answer is not None and normalise(fact.answers[0]) == normalise(answer)


def majority_baseline(train: Iterable[Fact], heldout: Iterable[Fact]) -> dict[str, Any]:
    """Scores the constant answer: of each relation the most frequent gold in training.

    A relation without training facts is answered wrongly.

    Returns:
        `relations` (relation to `answer`, `facts` and `accuracy` in [0, 1], aliases accepted),
        `micro` (over facts) and `macro` (over relations); null without held-out facts.
    """
    majority = majority_answers(train)
    right = {
        name: [name in majority and is_correct(majority[name], fact.accepted) for fact in facts]
        for name, facts in by_relation(heldout).items()
    }
    accuracy = {name: fmean(outcomes) for name, outcomes in right.items()}
    return {
        "relations": {
            name: {"answer": majority.get(name), "facts": len(right[name]), "accuracy": share}
            for name, share in accuracy.items()
        },
        "micro": fmean(chain.from_iterable(right.values())) if right else None,
        "macro": fmean(accuracy.values()) if right else None,
    }


def plot_account(told: Mapping[str, Any], path: Path) -> None:
    """Draws kept and dropped rows and the majority share by relation, as PNG or SVG by suffix."""
    rows = list(told["relations"].values())[::-1]
    names = list(map(plain_text, told["relations"]))[::-1]
    figure = new_figure(10, 1.5 + 0.3 * len(names))
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
    save_figure(figure, path, dpi=100)


_COLORS = (
    "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#882255",
    "#999933", "#332288", "#dddddd", "#44aa99",
)  # fmt: skip
