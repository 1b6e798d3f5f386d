"""What happened to each fact between the base and a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from factual_forgetting.bundle.manifest import Bundle, Item
from factual_forgetting.facts.fact import Fact
from factual_forgetting.scoring.results import Results
from factual_forgetting.scoring.styles import STYLES

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


def transitions(bundle: Bundle, results: Results) -> list[Transition]:
    """Classifies every fact that was asked by what the base had in the same prompt."""
    outcome, judged = STYLES[results.style].outcome, results.judgements
    return [
        Transition(split, item, _KINDS[item.base[outcome], judged[item.fact.id].correct], answer)
        for split, item in bundle.items()
        if (answer := results.answers.get(item.fact.id)) is not None
    ]


def count_transitions(changes: Iterable[Transition]) -> dict[str, int]:
    """Counts facts by kind of transition."""
    counts = Counter(change.kind for change in changes)
    return {kind: counts[kind] for kind in TRANSITIONS}
