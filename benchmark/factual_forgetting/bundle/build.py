"""Builds a bundle from labels: which facts are trained on, and which must not be forgotten.

Source: Kaplan et al. 2026 (arXiv 2604.15574) section 2: relations with at least 30 %
HighlyKnown, D_Known and D_Unk from the train split, D_Held from the dev split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from factual_forgetting.bundle import manifest as m
from factual_forgetting.bundle.manifest import Bundle, Item
from factual_forgetting.bundle.prior import answer_distance, match_answers
from factual_forgetting.config import Config, Share
from factual_forgetting.errors import InputError
from factual_forgetting.facts.account import by_relation, majority_baseline
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.leaks import TrainingIndex, find_leaks
from factual_forgetting.slick.labelling import SPARE, Category, Label, Labels, relation_table
from factual_forgetting.terminal import note

_MOST_OTHER = 1000
# What a split is drawn from: its name in papers, and the category and the split of its facts.
_DRAWN = {
    m.KNOWN: ("D_Known", Category.HIGHLY_KNOWN, "train"),
    m.UNKNOWN: ("D_Unk", Category.UNKNOWN, "train"),
    m.HELDOUT: ("D_Held", Category.HIGHLY_KNOWN, "dev"),
}
_Pool = dict[str, list[Label]]  # candidates by relation, shuffled


class BundleConfig(Config):
    """Sizes and rules of a bundle.

    Attributes:
        known: Facts in D_Known.
        unknown: Facts in D_Unk.
        heldout: Facts in D_Held.
        validation: HighlyKnown facts for selecting rates and stopping points.
        replay: HighlyKnown facts that methods may train on beside D_train.
        min_highly_known: Share of HighlyKnown train facts that a relation must reach.
        other_relations: Kept out of training beside those that fail the filter; their HighlyKnown
            facts, at most 1,000, become `heldout_other`.
        match_answers: Whether D_Unk's answers are distributed as D_Known's in each relation, as far
            as facts allow: D_Unk is selected for wrong answers, which favours rare ones.
        seed: Decides which facts are drawn.
    """

    known: PositiveInt = 8000
    unknown: PositiveInt = 8000
    heldout: PositiveInt = 2000
    validation: NonNegativeInt = SPARE["validation"]
    replay: NonNegativeInt = SPARE["replay"]
    min_highly_known: Share = 0.3
    other_relations: tuple[str, ...] = ()
    match_answers: bool = False
    seed: int = 0


def build_bundle(labels: Labels, config: BundleConfig, output: Path) -> Bundle:
    """Draws the splits and writes the bundle.

    D_Known, D_Unk and D_Held have the same relations in the same shares, as equal among
    relations as the scarcest category allows.

    Raises:
        UserError: If a size can't be met, with what there is; nothing is padded.
    """
    trained = _trained_relations(labels, config)
    shuffled = sorted(labels.labels, key=lambda label: label.fact.id)
    random.Random(f"bundle-{config.seed}").shuffle(shuffled)
    pools, overlapping = _pools(shuffled, trained)
    shares = _shares(pools, trained, config)
    splits = {m.KNOWN: _take(pools[m.KNOWN], shares, config.known)}
    if config.match_answers:
        counts = _counts(shares, config.unknown, pools[m.UNKNOWN])
        pools[m.UNKNOWN] = _matched(pools[m.UNKNOWN], splits[m.KNOWN], counts, config.seed)
    splits[m.UNKNOWN] = _take(pools[m.UNKNOWN], shares, config.unknown)
    splits[m.HELDOUT] = _take(pools[m.HELDOUT], shares, config.heldout)
    taken = {label.fact.subject for drawn in splits.values() for label in drawn}
    for name, size in ((m.VALIDATION, config.validation), (m.REPLAY, config.replay)):
        splits[name] = _spare(pools[m.KNOWN], taken, size, name)
        taken |= {label.fact.subject for label in splits[name]}
    others = [p for p in shuffled if not (p.fact.relation in trained or p.fact.subject in taken)]
    known = [p for p in others if p.category == Category.HIGHLY_KNOWN]
    splits[m.HELDOUT_OTHER] = known[:_MOST_OTHER]
    items = {name: [Item(p.fact, p.correct, p.base) for p in part] for name, part in splits.items()}
    details = _details(labels, config, overlapping, splits)
    return m.write_bundle(output, items, labels.exemplars, details)


def _trained_relations(labels: Labels, config: BundleConfig) -> list[str]:
    table = relation_table(labels.labels, config.min_highly_known)
    if unknown := set(config.other_relations) - {row["relation"] for row in table}:
        known = ", ".join(row["relation"] for row in table)
        raise InputError(
            f"No labels for the relation {', '.join(sorted(unknown))}. There are: {known}."
        )
    passing = [row["relation"] for row in table if row["passes"]]
    trained = [relation for relation in passing if relation not in config.other_relations]
    if not trained:
        best = max((row["highly_known_share"] for row in table), default=0.0)
        raise InputError(
            f"No relation reaches {config.min_highly_known:.0%} HighlyKnown (the best has "
            f"{best:.0%}). Lower --min_highly_known, or use a base that knows these facts."
        )
    failing = [row for row in table if not row["passes"]]
    told = [f"{row['relation']} ({row['highly_known_share']:.0%})" for row in failing]
    _tell_left_out(told, f"below {config.min_highly_known:.0%} HighlyKnown")
    return trained


def _tell_left_out(relations: Sequence[str], reason: str) -> None:
    if relations:
        note(f"left out of training, {reason}: {', '.join(relations)}")


def _pools(shuffled: Sequence[Label], trained: list[str]) -> tuple[dict[str, _Pool], int]:
    """Returns the candidates of each split, and how many of D_Held's training gives away."""
    inside = [label for label in shuffled if label.fact.relation in trained]
    found = {
        name: [p for p in inside if (p.category, p.fact.split) == (category, split)]
        for name, (_, category, split) in _DRAWN.items()
    }
    training = _facts(found[m.KNOWN] + found[m.UNKNOWN])
    given_away = {leak.heldout for leak in find_leaks(training, _facts(found[m.HELDOUT]))}
    pools: dict[str, _Pool] = {name: {relation: [] for relation in trained} for name in _DRAWN}
    for name, labels in found.items():
        for label in labels:
            if label.fact.id not in given_away:
                pools[name][label.fact.relation].append(label)
    return pools, len(given_away)


def _facts(labels: Iterable[Label]) -> list[Fact]:
    return [label.fact for label in labels]


def _shares(
    pools: dict[str, _Pool], relations: list[str], config: BundleConfig
) -> dict[str, float]:
    """Relation shares that all three splits can meet, by raising the lowest shares first."""
    sizes = {name: getattr(config, name) for name in _DRAWN}
    for name, (title, category, split) in _DRAWN.items():
        available = sum(map(len, pools[name].values()))
        if available < sizes[name]:
            raise InputError(
                f"{title} needs {sizes[name]} {category} {split} facts; relations "
                f"{', '.join(relations)} that pass {config.min_highly_known:.0%} HighlyKnown hold "
                f"{available:,}. Lower --{name}, or --min_highly_known, or label more "
                f"(classify --quota {name}={2 * sizes[name] - available}, or another source)."
            )
    caps = {
        relation: min(len(pools[name][relation]) / size for name, size in sizes.items() if size)
        for relation in relations
    }
    if sum(caps.values()) < 1:
        raise InputError(
            "The relations can't have the same shares in D_Known, D_Unk and D_Held: together "
            f"they allow {sum(caps.values()):.0%} of the sizes asked for. "
            "Lower --known, --unknown and --heldout by that much, or raise classify's --quota."
        )
    nothing = [relation for relation, cap in caps.items() if not cap]
    _tell_left_out(nothing, "no facts for one of D_Known, D_Unk and D_Held")
    return _level(caps)


def _level(caps: dict[str, float]) -> dict[str, float]:
    """Fills shares up to a common level, each at most its cap, so that they sum to 1."""
    shares: dict[str, float] = {}
    left = 1.0
    for index, (relation, cap) in enumerate(sorted(caps.items(), key=lambda pair: pair[1])):
        shares[relation] = min(cap, left / (len(caps) - index))
        left -= shares[relation]
    return shares


def _take(pool: _Pool, shares: dict[str, float], size: int) -> list[Label]:
    counts = _counts(shares, size, pool)
    return [label for relation, count in counts.items() for label in pool[relation][:count]]


def _matched(pool: _Pool, known: list[Label], counts: dict[str, int], seed: int) -> _Pool:
    """Leaves in each relation the facts whose answers match D_Known's."""
    ids = {
        fact.id
        for relation, target in by_relation(_facts(known)).items()
        for fact in match_answers(_facts(pool[relation]), target, counts[relation], seed)
    }
    return {name: [p for p in group if p.fact.id in ids] for name, group in pool.items()}


def _counts(shares: dict[str, float], size: int, pool: _Pool) -> dict[str, int]:
    """Splits a size by largest remainder; never more for a relation than it has."""
    exact = {relation: share * size for relation, share in sorted(shares.items())}
    counts = {relation: int(value + 1e-9) for relation, value in exact.items()}
    remainders = sorted(exact, key=lambda relation: counts[relation] - exact[relation])
    short = size - sum(counts.values())
    for relation in [r for r in remainders if counts[r] < len(pool[r])][:short]:
        counts[relation] += 1
    return counts


def _spare(pool: _Pool, taken: set[str], size: int, name: str) -> list[Label]:
    """Takes HighlyKnown facts of subjects that no split has, in turn from each relation."""
    groups = (
        [p for p in group if p.fact.subject not in taken] for _, group in sorted(pool.items())
    )
    left = [label for turn in zip_longest(*groups) for label in turn if label]
    if len(left) < size:
        raise InputError(
            f"{name} needs {size} HighlyKnown train facts whose subjects are in no other split; "
            f"{len(left):,} are left. Lower --{name} or --known, or label more (classify --quota "
            f"{name}={2 * size - len(left)}, or another source)."
        )
    return left[:size]


def _details(
    labels: Labels, config: BundleConfig, overlapping: int, splits: dict[str, list[Label]]
) -> dict[str, Any]:
    known, unknown, held = (_facts(splits[name]) for name in (m.KNOWN, m.UNKNOWN, m.HELDOUT))
    training = TrainingIndex([*known, *unknown, *_facts(splits[m.REPLAY])])
    unknown_by_relation = by_relation(unknown)
    return {
        "base": labels.manifest["base"],
        "source": labels.source,
        "majority_baseline": majority_baseline([*known, *unknown], held),
        "answer_distance": {
            relation: answer_distance(facts, unknown_by_relation[relation])
            for relation, facts in by_relation(known).items()
            if relation in unknown_by_relation
        },
        "labels": {key: labels.manifest[key] for key in ("engine", "settings", "matcher", "files")},
        "settings": config.model_dump(mode="json"),
        "relations": {
            name: dict(sorted(Counter(p.fact.relation for p in chosen).items()))
            for name, chosen in splits.items()
        },
        "heldout_dropped_for_overlap": overlapping,
        "heldout_subjects_as_training_objects": sum(
            any(leak.kind == "any_object" for leak in training.leaks(fact)) for fact in held
        ),
    }
