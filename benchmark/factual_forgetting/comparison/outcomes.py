"""What a comparison found: each fact before and after, shares with intervals, groups, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np

from factual_forgetting.comparison.interview import Reply
from factual_forgetting.facts.fact import Fact
from factual_forgetting.scoring.report import KEPT, LOST, STILL_UNKNOWN
from factual_forgetting.scoring.statistics import mcnemar, mean_difference, proportion, row_of

REGAINED, NEITHER, GAINED, UNCLEAR = "regained", "neither", "gained", "unclear"
_OF_KNOWN = (KEPT, LOST, REGAINED, NEITHER)
FATES = (*_OF_KNOWN, GAINED, STILL_UNKNOWN, UNCLEAR)
SURENESS = "base margin"
_TOO_FINE = {"id", "relation", "subject", "question", "answers", "aliases", "split"}
_MOST_GROUPS = 40
_MOSTLY_EMPTY = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """A fact before and after.

    Attributes:
        known: Whether the base has it right in all choosing prompts; else it has it in none.
        margin: The base's smallest margin over the choosing prompts, where it knows the fact.
        base: The base's reply in the compared prompt.
        reply: The checkpoint's.
    """

    fact: Fact
    known: bool
    margin: float | None
    base: Reply
    reply: Reply

    @property
    def fate(self) -> str:
        """Returns what became of the fact, one of `FATES`.

        A known one is kept or lost where the base has it right in the compared prompt, else
        regained or neither. Another one is gained or still unknown where the base has it wrong
        there, else unclear.
        """
        if not self.known:
            return UNCLEAR if self.base.right else GAINED if self.reply.right else STILL_UNKNOWN
        if self.base.right:
            return KEPT if self.reply.right else LOST
        return REGAINED if self.reply.right else NEITHER


def measures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Computes shares with 95 % intervals, each None without facts.

    Returns:
        `stability`: known facts that are right. `lost` and `kept`: of the known ones that the
        base has right in the same prompt, those that are wrong, and right. `net`: the base's
        stability minus this one, paired. `gained`: of unknown facts that the base has wrong in
        the same prompt, those that are right. `base_stability`, and counts of known facts.
    """
    known = [pair for pair in pairs if pair.known]
    held = [pair for pair in known if pair.base.right]
    new = [pair for pair in pairs if not (pair.known or pair.base.right)]
    differences = [float(pair.base.right) - float(pair.reply.right) for pair in known]
    counts = Counter(pair.fate for pair in known)
    return {
        "stability": _share(known, lambda pair: pair.reply.right),
        "kept": _share(held, lambda pair: pair.reply.right),
        "lost": _share(held, lambda pair: not pair.reply.right),
        "net": row_of(mean_difference(differences, [pair.fact.relation for pair in known])),
        "gained": _share(new, lambda pair: pair.reply.right),
        "base_stability": _share(known, lambda pair: pair.base.right),
        "fates": {fate: counts[fate] for fate in _OF_KNOWN},
    }


def _share(pairs: Sequence[Pair], holds: Callable[[Pair], bool]) -> dict[str, Any] | None:
    outcomes = [float(holds(pair)) for pair in pairs]
    return row_of(proportion(outcomes, [pair.fact.relation for pair in pairs]))


def floor(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Returns what the base itself loses and gains in the compared prompt, as `measures` does.

    The choosing prompts chose what was right in them; in another one some of it is wrong.
    """
    known, new = ([p for p in pairs if p.known is side] for side in (True, False))
    return {
        "stability": _share(known, lambda pair: pair.base.right),
        "lost": _share(known, lambda pair: not pair.base.right),
        "gained": _share(new, lambda pair: pair.base.right),
    }


def grouped(pairs: Sequence[Pair]) -> dict[str, list[dict[str, Any]]]:
    """Computes the measures by relation, and by every column that tells facts apart.

    Numbers come in thirds of the known facts. How sure the base was is a column too.
    """
    columns: dict[str, list[Any]] = {"relation": [pair.fact.relation for pair in pairs]}
    for name in (field.name for field in fields(Fact) if field.name not in _TOO_FINE):
        columns[name] = [getattr(pair.fact, name) for pair in pairs]
    columns[SURENESS] = [pair.margin for pair in pairs]
    found = {}
    for name, values in columns.items():
        kinds, labels = _bands(values, [pair.known for pair in pairs])
        if name == "relation" or 1 < len(kinds) <= _MOST_GROUPS:
            found[name] = [_group(kind, pairs, labels) for kind in kinds]
    return found


def _group(kind: str, pairs: Sequence[Pair], labels: Sequence[str | None]) -> dict[str, Any]:
    own = [pair for pair, label in zip(pairs, labels, strict=True) if label == kind]
    return {"group": kind, "known": sum(pair.known for pair in own), **measures(own)}


def _bands(values: Sequence[Any], known: Sequence[bool]) -> tuple[list[str], list[str | None]]:
    """Names the groups of a column in their order, and the group of each value.

    A number's group is a third of those of known facts.
    """
    told = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) for value in told):
        labels = [None if value is None else str(value) for value in values]
        return sorted({label for label in labels if label is not None}), labels
    of_known = [v for v, is_known in zip(values, known, strict=True) if is_known and v is not None]
    low, high = np.quantile(of_known, [1 / 3, 2 / 3]) if of_known else (0.0, 0.0)
    names = [f"up to {_short(low)}", f"{_short(low)} to {_short(high)}", f"over {_short(high)}"]
    places = [None if value is None else int(value > low) + int(value > high) for value in values]
    found = [names[place] for place in sorted({place for place in places if place is not None})]
    return found, [None if place is None else names[place] for place in places]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def pairs_of_checkpoints(outcomes: Mapping[str, Sequence[Pair]]) -> list[dict[str, Any]]:
    """Tests each pair of checkpoints on the known facts by McNemar's exact test."""
    right = {
        name: [pair.reply.right for pair in pairs if pair.known] for name, pairs in outcomes.items()
    }
    found = []
    for first, second in combinations(right, 2):
        both = list(zip(right[first], right[second], strict=True))
        only = both.count((True, False)), both.count((False, True))
        found.append(
            {
                "checkpoints": [first, second],
                "only_first_right": only[0],
                "only_second_right": only[1],
                "p_value": mcnemar(*only),
            }
        )
    return found


def empty_note(name: str, pairs: Sequence[Pair]) -> list[str]:
    """Tells of a checkpoint that answers nothing to most questions."""
    share = sum(not pair.reply.text for pair in pairs) / len(pairs)
    if share < _MOSTLY_EMPTY:
        return []
    return [
        f"{name} answers nothing to {share:.0%} of the questions: a format that broke looks like "
        "forgetting. Ask in another way (--zero_shot, --chat, or neither)."
    ]
