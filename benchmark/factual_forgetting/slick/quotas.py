"""How many labels are enough: a quota counts what a bundle of its sizes will draw from.

A bundle takes relations that pass its filter, in the same shares for all its splits, and its
facts for selection and replay beside D_Known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from factual_forgetting.slick.labelling import QUOTAS, SPARE, Category, Label

_DRAWN = tuple(name for name in QUOTAS if name not in SPARE)


class Tally:
    """Labels by relation, and what of a quota they don't fill yet."""

    def __init__(self, quota: Mapping[str, int], min_highly_known: float) -> None:
        """Begins with no label."""
        self._quota, self._least = quota, min_highly_known
        self._counts: dict[str, Counter[tuple[Category, str]]] = {}
        self._all: Counter[tuple[Category, str]] = Counter()

    def add(self, labels: Iterable[Label]) -> None:
        """Counts labels."""
        for label in labels:
            key = label.category, label.fact.split
            self._counts.setdefault(label.fact.relation, Counter())[key] += 1
            self._all[key] += 1

    def categories(self) -> Counter[Category]:
        """Returns the number of labels by category."""
        return Counter(category for category, _ in self._all.elements())

    def missing(self) -> dict[str, str]:
        """Tells what of the quota isn't full, by name: found and wanted."""
        if short := self._short(self._all):  # the usual case while labels are counted
            return short
        passing = [counts for counts in self._counts.values() if self._passes(counts)]
        if short := self._short(sum(passing, Counter())):
            return {f"{name} in relations that pass": told for name, told in short.items()}
        wanted = {name: self._quota[name] for name in _DRAWN if self._quota.get(name)}
        if not wanted:
            return {}
        shares = [min(c[QUOTAS[name]] / size for name, size in wanted.items()) for c in passing]
        if sum(shares) < 1:
            return {"relations in the same shares": f"{sum(shares):.0%} of the sizes"}
        return {}

    def _short(self, counts: Counter[tuple[Category, str]]) -> dict[str, str]:
        """Compares counts with the sizes; what is spare comes on top of D_Known."""
        spare = sum(self._quota.get(name, 0) for name in SPARE)
        told = {}
        for name in _DRAWN:
            wanted = self._quota.get(name, 0) + (spare if name == "known" else 0)
            if counts[QUOTAS[name]] < wanted:
                what = " with validation and replay" if wanted > self._quota.get(name, 0) else ""
                told[name + what] = f"{counts[QUOTAS[name]]:,} of {wanted:,}"
        return told

    def _passes(self, counts: Counter[tuple[Category, str]]) -> bool:
        train = sum(count for (_, split), count in counts.items() if split == "train")
        return counts[QUOTAS["known"]] >= self._least * (train or 1)
