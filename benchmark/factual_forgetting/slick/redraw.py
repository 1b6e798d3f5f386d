"""How reliable labels are: a sample of facts labelled again with other exemplars."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.engines.engine import Engine
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact, stable_fraction
from factual_forgetting.slick.classify import begin
from factual_forgetting.slick.labelling import (
    EXEMPLARS_FILE,
    LABELS_MANIFEST,
    Category,
    SlickConfig,
    read_labels,
)

_REDRAW, _AGAIN = "redraw.json", "redraw"


def check_redraw(
    facts: Iterable[Fact], engine: Engine, output: Path, sample: int
) -> dict[str, Any]:
    """Labels a sample again, and tells how often the category is the same.

    The exemplars are drawn from facts outside the sample that have not been exemplars before.

    Args:
        facts: The facts that were given to the labelling.
        engine: The engine that made it.
        output: Its directory; takes `redraw.json` and the second labelling.
        sample: Facts to label again.

    Returns:
        Sample, agreement in [0, 1], swaps between HighlyKnown and Unknown, and the confusion
        table: first category, second category, facts.

    Raises:
        UserError: If there are fewer labels than the sample asks for, or too few others.
    """
    manifest = files.read_json(output / LABELS_MANIFEST)
    labelled = sum(manifest["categories"].values())
    if sample > labelled:
        raise InputError(f"--check-redraw asks for {sample} of {labelled} labels. Lower it.")
    rows = ((label.fact.id, label.category) for label in read_labels(output))
    first = dict(heapq.nsmallest(sample, rows, key=lambda row: stable_fraction(_AGAIN, row[0])))
    seed = manifest["settings"]["seed"]
    settings = SlickConfig(**{**manifest["settings"], "quota": {}, "seed": seed + 1})
    used = {e["id"] for row in files.read_jsonl(output / EXEMPLARS_FILE) for e in row["facts"]}
    others = (fact for fact in facts if fact.id not in used)
    again = output / _AGAIN
    labelling = begin(others, engine.name, settings, manifest["base"], again, frozenset(first))
    labelling.ask(engine, labelling.shards)
    labelling.merge(some_right=False)
    pairs = Counter((first[p.fact.id], p.category) for p in read_labels(again))
    ends = Category.HIGHLY_KNOWN, Category.UNKNOWN
    told = {
        "sample": sample,
        "agreement": sum(pairs[one, one] for one in Category) / sample,
        "swapped": pairs[ends] + pairs[ends[::-1]],
        "confusion": {one: {other: pairs[one, other] for other in Category} for one in Category},
        "seeds": [seed, settings.seed],
    }
    files.write_json(output / _REDRAW, told)
    return told
