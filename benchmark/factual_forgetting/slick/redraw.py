"""How reliable labels are: a sample of facts labelled again with other exemplars."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import stable_fraction
from factual_forgetting.slick.answers import Engine
from factual_forgetting.slick.classify import ask, merge, prepare
from factual_forgetting.slick.labelling import (
    CATEGORIES,
    HIGHLY_KNOWN,
    UNKNOWN,
    Labels,
    SlickConfig,
    load_labels,
)

REDRAW = "redraw.json"
_AGAIN = "redraw"


def check_redraw(labels: Labels, engine: Engine, output: Path, sample: int) -> dict[str, Any]:
    """Labels a sample again, and tells how often the category is the same.

    The exemplars are drawn from labelled facts outside the sample, so none has served before.

    Args:
        labels: The labelling in question.
        engine: The engine that made it.
        output: Its directory; takes `redraw.json` and the second labelling.
        sample: Facts to label again.

    Returns:
        Sample, agreement in [0, 1], swaps between HighlyKnown and Unknown, and the confusion
        table: first category, second category, facts.

    Raises:
        UserError: If there are fewer labels than the sample asks for, or too few others.
    """
    if sample > len(labels.labels):
        raise UserError(
            f"--check-redraw asks for {sample} of {len(labels.labels)} labels. Lower it."
        )
    first = {label.fact.id: label.category for label in labels.labels}
    chosen = frozenset(sorted(first, key=lambda fact: stable_fraction(_AGAIN, fact))[:sample])
    settings = SlickConfig(**{**labels.manifest["settings"], "quota": {}})
    settings = settings.model_copy(update={"seed": settings.seed + 1})
    facts = (label.fact for label in labels.labels)
    again = output / _AGAIN
    job = prepare(facts, engine.name, settings, labels.manifest["base"], again, chosen)
    ask(job, engine, job.shards)
    merge(job)
    pairs = Counter((first[p.fact.id], p.category) for p in load_labels(again).labels)
    same = sum(count for (one, other), count in pairs.items() if one == other)
    told = {
        "sample": sample,
        "agreement": same / sample,
        "swapped": pairs[HIGHLY_KNOWN, UNKNOWN] + pairs[UNKNOWN, HIGHLY_KNOWN],
        "confusion": {
            one: {other: pairs[one, other] for other in CATEGORIES} for one in CATEGORIES
        },
        "seeds": [settings.seed - 1, settings.seed],
    }
    files.write_json(output / REDRAW, told)
    return told
