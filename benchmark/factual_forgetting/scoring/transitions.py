"""What happened to each fact between the base and a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from factual_forgetting.bundle.manifest import Bundle, Item
from factual_forgetting.facts.fact import Fact

KEPT, LOST, LEARNED, STILL_UNKNOWN = "kept", "lost", "learned", "still unknown"
TRANSITIONS = (KEPT, LOST, LEARNED, STILL_UNKNOWN)


@dataclass(frozen=True, slots=True)
class Transition:
    """One fact, before and after.

    Attributes:
        split: Split of the bundle.
        item: The fact with the base's outcomes.
        kind: One of `TRANSITIONS`.
        answer: What the checkpoint answered.
    """

    split: str
    item: Item
    kind: str
    answer: str

    @property
    def fact(self) -> Fact:
        """The fact alone."""
        return self.item.fact


_KINDS = {
    (True, True): KEPT,
    (True, False): LOST,
    (False, True): LEARNED,
    (False, False): STILL_UNKNOWN,
}


def transitions(
    bundle: Bundle, correct: Mapping[str, bool], answers: Mapping[str, str], outcome: str
) -> list[Transition]:
    """Classifies every fact that was asked by the base's outcome and the checkpoint's.

    Args:
        bundle: The bundle.
        correct: The checkpoint's outcome by fact id.
        answers: Its answers by fact id.
        outcome: Which outcome of the base is that of the same prompt.
    """
    return [
        Transition(split, item, _KINDS[item.base[outcome], correct[item.fact.id]], answer)
        for split, item in bundle.items()
        if (answer := answers.get(item.fact.id)) is not None
    ]


def count_transitions(changes: Iterable[Transition]) -> dict[str, int]:
    """Counts facts by kind of transition."""
    counts = Counter(change.kind for change in changes)
    return {kind: counts[kind] for kind in TRANSITIONS}
