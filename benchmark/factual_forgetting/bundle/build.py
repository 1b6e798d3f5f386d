"""Builds a bundle from labels: which facts are trained on, and which must not be forgotten.

Source: Kaplan et al. 2026 (arXiv 2604.15574) section 2: relations with at least 30 %
HighlyKnown, D_Known and D_Unk from the train split, D_Held from the dev split.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from factual_forgetting.bundle import manifest as m
from factual_forgetting.bundle.manifest import Bundle, Item
from factual_forgetting.config import Config
from factual_forgetting.errors import UserError
from factual_forgetting.facts.account import answer_distance, majority_baseline, match_answers
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.leaks import TrainingIndex
from factual_forgetting.slick.labelling import Category, Label, Labels, relation_table

MOST_OTHER = 1000


class BundleConfig(Config):
    """Sizes and rules of a bundle.

    Attributes:
        known: Facts in D_Known.
        unknown: Facts in D_Unk.
        heldout: Facts in D_Held.
        validation: HighlyKnown facts for selecting rates and stopping points.
        replay: HighlyKnown facts that methods may train on beside D_train.
        min_highly_known: Share of HighlyKnown train facts that a relation must reach.
        other_relations: Relations kept out of training beside those that fail the filter;
            their HighlyKnown facts, at most 1,000, become `heldout_other`.
        match_answers: Whether D_Unk's answers are distributed as D_Known's in each relation, as
            nearly as there are Unknown facts: D_Unk is selected for wrong answers, which
            favours rare ones.
        seed: Decides which facts are drawn.
    """

    known: int = 8000
    unknown: int = 8000
    heldout: int = 2000
    validation: int = 500
    replay: int = 500
    min_highly_known: float = 0.3
    other_relations: tuple[str, ...] = ()
    match_answers: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Pools:
    """Candidates by relation, shuffled."""

    known: dict[str, list[Label]]
    unknown: dict[str, list[Label]]
    heldout: dict[str, list[Label]]
    other: list[Label]
    overlapping: int


def build(labels: Labels, config: BundleConfig, output: Path) -> Bundle:
    """Draws the splits and writes the bundle.

    D_Known, D_Unk and D_Held have the same relations in the same shares, as equal among
    relations as the scarcest category allows.

    Raises:
        UserError: If a size can't be met, with what there is; nothing is padded.
    """
    trained = _trained_relations(labels, config)
    pools = _pools(labels.labels, trained, config.seed)
    shares = _shares(pools, trained, config)
    known = _take(pools.known, shares, config.known)
    unknown = pools.unknown
    if config.match_answers:
        unknown = _matched(unknown, known, _counts(shares, config.unknown, unknown), config.seed)
    splits = {
        m.KNOWN: known,
        m.UNKNOWN: _take(unknown, shares, config.unknown),
        m.HELDOUT: _take(pools.heldout, shares, config.heldout),
    }
    taken = {label.fact.subject for name in splits for label in splits[name]}
    for name, size in ((m.VALIDATION, config.validation), (m.REPLAY, config.replay)):
        splits[name] = _spare(pools.known, taken, size, name)
        taken |= {label.fact.subject for label in splits[name]}
    splits[m.HELDOUT_OTHER] = [p for p in pools.other if p.fact.subject not in taken][:MOST_OTHER]
    items = {name: [_item(label) for label in chosen] for name, chosen in splits.items()}
    return m.write_bundle(output, items, labels.exemplars, _details(labels, config, pools, splits))


def _trained_relations(labels: Labels, config: BundleConfig) -> list[str]:
    table = relation_table(labels.labels, config.min_highly_known)
    unknown = set(config.other_relations) - {row["relation"] for row in table}
    if unknown:
        known = ", ".join(row["relation"] for row in table)
        raise UserError(
            f"No labels for the relation {', '.join(sorted(unknown))}. There are: {known}."
        )
    passing = [row["relation"] for row in table if row["passes"]]
    trained = [relation for relation in passing if relation not in config.other_relations]
    if not trained:
        best = max((row["highly_known_share"] for row in table), default=0.0)
        raise UserError(
            f"No relation reaches {config.min_highly_known:.0%} HighlyKnown (the best has "
            f"{best:.0%}). Lower --min_highly_known, or use a base that knows these facts."
        )
    return trained


def _pools(labels: Sequence[Label], trained: list[str], seed: int) -> _Pools:
    shuffled = sorted(labels, key=lambda label: label.fact.id)
    random.Random(f"bundle-{seed}").shuffle(shuffled)
    train = [p for p in shuffled if p.fact.relation in trained and p.fact.split == "train"]
    candidates = [p for p in train if p.category in (Category.HIGHLY_KNOWN, Category.UNKNOWN)]
    leaks = TrainingIndex(label.fact for label in candidates)
    known_dev = [
        p for p in shuffled if p.fact.split == "dev" and p.category == Category.HIGHLY_KNOWN
    ]
    inside = [p for p in known_dev if p.fact.relation in trained]
    clean = [p for p in inside if not _touched(leaks, p.fact)]
    return _Pools(
        known=_by_relation(p for p in candidates if p.category == Category.HIGHLY_KNOWN),
        unknown=_by_relation(p for p in candidates if p.category == Category.UNKNOWN),
        heldout=_by_relation(clean),
        other=[
            p
            for p in shuffled
            if p.category == Category.HIGHLY_KNOWN and p.fact.relation not in trained
        ],
        overlapping=len(inside) - len(clean),
    )


def _touched(index: TrainingIndex, fact: Fact) -> bool:
    """Whether training speaks of a fact's subject, or gives the fact away backwards."""
    return any(leak.kind != "any_object" for leak in index.leaks(fact))


def _by_relation(labels: Iterable[Label]) -> dict[str, list[Label]]:
    groups: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        groups[label.fact.relation].append(label)
    return groups


def _shares(pools: _Pools, relations: list[str], config: BundleConfig) -> dict[str, float]:
    """Relation shares that all three splits can meet, by raising the lowest shares first."""
    wanted = (
        ("D_Known", "HighlyKnown train", "known", pools.known, config.known),
        ("D_Unk", "Unknown train", "unknown", pools.unknown, config.unknown),
        ("D_Held", "HighlyKnown dev", "heldout", pools.heldout, config.heldout),
    )
    for name, kind, flag, pool, size in wanted:
        available = sum(len(pool.get(relation, ())) for relation in relations)
        if available < size:
            raise UserError(
                f"{name} needs {size} {kind} facts; relations {', '.join(relations)} that pass "
                f"{config.min_highly_known:.0%} HighlyKnown hold {available:,}. "
                f"Lower --{flag}, or --min_highly_known, or add a source."
            )
    caps = {
        relation: min(len(pool.get(relation, ())) / size for _, _, _, pool, size in wanted if size)
        for relation in relations
    }
    if sum(caps.values()) < 1:
        raise UserError(
            "The relations can't have the same shares in D_Known, D_Unk and D_Held: together "
            f"they allow {sum(caps.values()):.0%} of the sizes asked for. "
            "Lower --known, --unknown and --heldout by that much."
        )
    return _level(caps)


def _level(caps: dict[str, float]) -> dict[str, float]:
    """Fills shares up to a common level, each at most its cap, so that they sum to 1."""
    shares: dict[str, float] = {}
    left = 1.0
    for index, (relation, cap) in enumerate(sorted(caps.items(), key=lambda pair: pair[1])):
        shares[relation] = min(cap, left / (len(caps) - index))
        left -= shares[relation]
    return shares


def _take(pool: dict[str, list[Label]], shares: dict[str, float], size: int) -> list[Label]:
    counts = _counts(shares, size, pool)
    return [label for relation, count in counts.items() for label in pool.get(relation, [])[:count]]


def _matched(
    pool: dict[str, list[Label]], known: list[Label], counts: dict[str, int], seed: int
) -> dict[str, list[Label]]:
    """Moves to the front of each relation the facts whose answers match D_Known's."""
    targets = _by_relation(known)
    found = {}
    for relation, group in pool.items():
        target = [label.fact for label in targets.get(relation, [])]
        count = counts.get(relation, 0)
        drawn = match_answers([p.fact for p in group], target, count, seed) if target else []
        ids = {fact.id for fact in drawn}
        found[relation] = [label for label in group if label.fact.id in ids]
    return found


def _counts(shares: dict[str, float], size: int, pool: dict[str, list[Label]]) -> dict[str, int]:
    """Splits a size by largest remainder; never more for a relation than it has."""
    exact = {relation: share * size for relation, share in sorted(shares.items())}
    counts = {relation: int(value + 1e-9) for relation, value in exact.items()}
    remainders = sorted(exact, key=lambda relation: counts[relation] - exact[relation])
    short = size - sum(counts.values())
    for relation in [r for r in remainders if counts[r] < len(pool.get(r, ()))][:short]:
        counts[relation] += 1
    return counts


def _spare(pool: dict[str, list[Label]], taken: set[str], size: int, name: str) -> list[Label]:
    """Takes HighlyKnown facts of subjects that no split has, in turn from each relation."""
    ranks: Counter[str] = Counter()
    ranked = []
    for relation, group in sorted(pool.items()):
        for label in group:
            if label.fact.subject not in taken:
                ranked.append((ranks[relation], label))
                ranks[relation] += 1
    if len(ranked) < size:
        raise UserError(
            f"{name} needs {size} HighlyKnown train facts whose subjects are in no other split; "
            f"{len(ranked):,} are left. Lower --{name} or --known, or add a source."
        )
    return [label for _, label in sorted(ranked, key=lambda pair: pair[0])[:size]]


def _item(label: Label) -> Item:
    return Item(label.fact, label.correct, label.base)


def _details(
    labels: Labels, config: BundleConfig, pools: _Pools, splits: dict[str, list[Label]]
) -> dict[str, object]:
    training = TrainingIndex(p.fact for n in (m.KNOWN, m.UNKNOWN, m.REPLAY) for p in splits[n])
    held = splits[m.HELDOUT]
    trained = [p.fact for name in (m.KNOWN, m.UNKNOWN) for p in splits[name]]
    return {
        "base": labels.manifest["base"],
        "source": labels.source,
        "majority_baseline": majority_baseline(trained, [p.fact for p in held]),
        "answer_distance": _answer_distance(splits),
        "labels": {key: labels.manifest[key] for key in ("engine", "settings", "matcher", "files")},
        "settings": config.model_dump(mode="json"),
        "relations": {
            name: dict(sorted(Counter(p.fact.relation for p in chosen).items()))
            for name, chosen in splits.items()
        },
        "heldout_dropped_for_overlap": pools.overlapping,
        "heldout_subjects_as_training_objects": sum(
            any(leak.kind == "any_object" for leak in training.leaks(p.fact)) for p in held
        ),
    }


def _answer_distance(splits: dict[str, list[Label]]) -> dict[str, float]:
    """How far D_Unk's answers are distributed from D_Known's, by relation, in [0, 1]."""
    known, unknown = (_by_relation(splits[name]) for name in (m.KNOWN, m.UNKNOWN))
    return {
        relation: answer_distance(
            [p.fact for p in known[relation]], [p.fact for p in unknown[relation]]
        )
        for relation in sorted(set(known) & set(unknown))
    }
