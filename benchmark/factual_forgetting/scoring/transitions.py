"""What happened to each fact between the base and a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.facts.matching import normalise
from factual_forgetting.scoring.judging import Judgement

KEPT, LOST, LEARNED, STILL_UNKNOWN = "kept", "lost", "learned", "still unknown"
TRANSITIONS = (KEPT, LOST, LEARNED, STILL_UNKNOWN)


@dataclass(frozen=True, slots=True)
class Transition:
    """One fact, before and after.

    Attributes:
        split: Split of the bundle.
        item: The fact with the base's outcomes.
        kind: `kept`, `lost`, `learned` or `still unknown`.
        answer: What the checkpoint answered.
    """

    split: str
    item: Item
    kind: str
    answer: str


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
    names = {(True, True): KEPT, (True, False): LOST, (False, True): LEARNED}
    return [
        Transition(
            split,
            item,
            names.get((item.base[outcome], correct[item.fact.id]), STILL_UNKNOWN),
            answers[item.fact.id],
        )
        for split, item in bundle.items()
        if item.fact.id in answers
    ]


def majority_answers(bundle: Bundle) -> dict[str, str]:
    """Returns the most frequent gold of each relation over D_Known, D_Unk and D_Held.

    Only relations in which a gold occurs twice have one; ties go to the first in the alphabet.
    """
    golds: dict[str, Counter[str]] = {}
    for split in (KNOWN, UNKNOWN, HELDOUT):
        for item in bundle.splits[split]:
            counts = golds.setdefault(item.fact.relation, Counter())
            counts[normalise(item.fact.answers[0])] += 1
    most = {relation: min(c.items(), key=lambda p: (-p[1], p[0])) for relation, c in golds.items()}
    return {relation: gold for relation, (gold, count) in most.items() if count > 1}


def intrusions(
    bundle: Bundle,
    items: Sequence[Item],
    judgements: Mapping[str, Judgement],
    answers: Mapping[str, str],
) -> tuple[list[Item], dict[str, bool]]:
    """Tells which wrong answers name an object that training on D_Unk taught.

    Args:
        bundle: The bundle.
        items: Facts that were asked.
        judgements: Outcome by fact id.
        answers: What was said, by fact id.

    Returns:
        The facts answered wrongly, abstentions left out, and whether each answer is a gold of
        D_Unk, of whatever relation.
    """
    objects = {
        normalise(gold) for item in bundle.splits[UNKNOWN] for gold in item.fact.accepted
    } - {""}
    wrong = [i for i in items if _is_wrong(judgements[i.fact.id])]
    return wrong, {i.fact.id: normalise(answers[i.fact.id]) in objects for i in wrong}


def _is_wrong(found: Judgement) -> bool:
    return not found.correct and not found.abstained
