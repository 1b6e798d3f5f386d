"""How many labels are enough: a quota counts what a bundle of its sizes will draw.

A bundle takes relations that pass its filter, in the same shares for all its splits. No subject
of D_Held is trained on, and facts for selection and replay have subjects of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import ceil, sqrt

from factual_forgetting.facts.matching import normalise
from factual_forgetting.slick.labelling import QUOTAS, SPARE, Category, Label

_DRAWN = tuple(name for name in QUOTAS if name not in SPARE)
_Counts = Counter[tuple[Category, str]]
_Pools = dict[str, list[tuple[str, str]]]  # relation and subject of each fact


class Tally:
    """Labels by relation, and what of a quota they don't fill yet."""

    def __init__(self, quota: Mapping[str, int], min_highly_known: float) -> None:
        """Begins with no label."""
        self._quota, self._least = quota, min_highly_known
        self._counts: dict[str, _Counts] = {}
        self._all: _Counts = Counter()
        self._pools: _Pools = {name: [] for name in _DRAWN}

    def add(self, labels: Iterable[Label]) -> None:
        """Counts labels."""
        for label in labels:
            key, relation = (label.category, label.fact.split), label.fact.relation
            self._counts.setdefault(relation, Counter())[key] += 1
            self._all[key] += 1
            if self._quota:
                for name in _DRAWN:
                    if QUOTAS[name] == key:
                        self._pools[name].append((relation, normalise(label.fact.subject)))

    def categories(self) -> Counter[Category]:
        """Returns the number of labels by category."""
        return Counter(category for category, _ in self._all.elements())

    def missing(self) -> dict[str, str]:
        """Tells what of the quota isn't full, by name: found and wanted."""
        counts = {name: self._all[QUOTAS[name]] for name in _DRAWN}
        if short := self._short(counts):  # the usual case while labels are counted
            return short
        passing = {name for name, found in self._counts.items() if self._passes(found)}
        pools = {name: [p for p in self._pools[name] if p[0] in passing] for name in _DRAWN}
        trained = {subject for name in ("known", "unknown") for _, subject in pools[name]}
        pools["heldout"] = [pair for pair in pools["heldout"] if pair[1] not in trained]
        counts = {name: len(pools[name]) for name in _DRAWN}
        if short := self._short(counts):
            return {f"{name} in relations that pass": told for name, told in short.items()}
        return self._uneven(pools) or self._entangled(pools)

    def _short(self, counts: dict[str, int]) -> dict[str, str]:
        """Compares counts with the sizes; what is spare comes on top of D_Known."""
        spare = sum(self._quota.get(name, 0) for name in SPARE)
        told = {}
        for name, found in counts.items():
            wanted = self._quota.get(name, 0) + (spare if name == "known" else 0)
            if found < wanted:
                what = " with validation and replay" if wanted > self._quota.get(name, 0) else ""
                told[name + what] = f"{found:,} of {wanted:,}"
        return told

    def _passes(self, counts: _Counts) -> bool:
        train = sum(count for (_, split), count in counts.items() if split == "train")
        return counts[QUOTAS["known"]] >= self._least * (train or 1)

    def _uneven(self, pools: _Pools) -> dict[str, str]:
        """Tells whether all splits can have the same relations in the same shares."""
        wanted = {name: self._quota[name] for name in _DRAWN if self._quota.get(name)}
        if not wanted:
            return {}
        by_relation = {name: Counter(relation for relation, _ in pools[name]) for name in wanted}
        caps = (
            min(by_relation[name][relation] / size for name, size in wanted.items())
            for relation in self._counts
        )
        share = sum(caps)
        return {} if share >= 1 else {"relations in the same shares": f"{share:.0%} of the sizes"}

    def _entangled(self, pools: _Pools) -> dict[str, str]:
        """Tells whether enough facts are left whose subjects no other split has.

        A bundle's draw is another one of the same kind, so as many again as it may differ by are
        kept in reserve: four standard deviations of what subjects in common take away.
        """
        sizes = {name: self._quota.get(name, 0) for name in _DRAWN}
        taken = {subject for name, size in sizes.items() for _, subject in pools[name][:size]}
        rest = [subject for _, subject in pools["known"][sizes["known"] :]]
        subjects = [subject for pool in pools.values() for _, subject in pool]
        lost = int(len(set(subjects)) < len(subjects))  # another draw may lose what this doesn't
        for name, size in ((name, self._quota.get(name, 0)) for name in SPARE):
            left = [subject for subject in rest if subject not in taken]
            lost += len(rest) - len(left)
            reserve = ceil(4 * sqrt(lost)) if size else 0
            if len(left) < size + reserve:
                return {f"{name} of subjects of its own": f"{len(left):,} of {size + reserve:,}"}
            taken |= set(left[:size])
            rest = left[size:]
        return {}
