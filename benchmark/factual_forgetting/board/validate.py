"""Validates records: every number is recomputed from per-fact outcomes and the bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from factual_forgetting.board.record import Record, load_record, recompute, record_id
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle
from factual_forgetting.errors import UserError

_TOLERANCE = 1e-9


def validate(path: Path, bundle: Bundle) -> list[str]:
    """Checks one record against the bundle.

    Args:
        path: The record.
        bundle: The bundle that it names.

    Returns:
        One line a fault; none if the record holds.
    """
    try:
        record, rows = load_record(path)
    except UserError as error:
        return [str(error)]
    if record.bundle_sha256 != bundle.sha256:
        return [f"{path}: made with the bundle {record.bundle_sha256}, not {bundle.sha256}."]
    return [f"{path}: {fault}" for fault in _faults(record, rows, bundle, path)]


def _faults(record: Record, rows: list[dict[str, Any]], bundle: Bundle, path: Path) -> list[str]:
    expected = [
        (item.fact.id, split, item.fact.relation)
        for split in (KNOWN, UNKNOWN, HELDOUT)
        for item in bundle.splits[split]
    ]
    if [(row["id"], row["split"], row["relation"]) for row in rows] != expected:
        return ["the outcomes aren't those of the bundle's facts, each once and in order."]
    faults = []
    dumped = record.model_dump(mode="json")
    identity = {
        key: dumped[key]
        for key in ("bundle_sha256", "weights_sha256", "method", "protocol", "seed")
    }
    if record_id(**identity, outcomes_sha256=record.outcomes.sha256) != record.id:
        faults.append(f"its id {record.id} isn't the hash of what identifies it.")
    if path.stem != record.id:
        faults.append(f"its file is not named after its id {record.id}.")
    if record.base != bundle.manifest["base"]:
        faults.append("its base isn't the bundle's.")
    metrics = recompute(bundle, rows, dumped["curve"])
    faults += [
        f"{name} is {record.metrics.get(name)}, but the outcomes give {value}."
        for name, value in metrics.items()
        if not _equal(record.metrics.get(name), value)
    ]
    unknown = sorted(set(record.metrics) - set(metrics))
    if unknown:
        faults.append(f"unknown metrics: {', '.join(unknown)}.")
    return faults


def _equal(given: Any, computed: Any) -> bool:
    """Compares to the last digits that differ between versions of numpy."""
    if isinstance(computed, dict):
        same_keys = isinstance(given, dict) and set(given) == set(computed)
        return same_keys and all(_equal(given[key], computed[key]) for key in computed)
    if isinstance(computed, float) and isinstance(given, int | float):
        return math.isclose(given, computed, rel_tol=0, abs_tol=_TOLERANCE)
    return bool(given == computed)
