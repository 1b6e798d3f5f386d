"""The board: a pure function of the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tabulate import tabulate

from factual_forgetting.board.record import Outcome, Record, curve_points
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import methods
from factual_forgetting.scoring.statistics import Estimate, mean_difference, proportion

Entry = tuple[Record, list[Outcome]]
REFERENCES = ("known_only", "sft")


def make_board(entries: Iterable[Entry]) -> dict[str, Any]:
    """Groups records by bundle, averages seeds per fact, and compares with the references.

    Args:
        entries: Records with their outcomes, in any order; the same record twice counts once.

    Returns:
        `bundles`: for each bundle its hash, base and rows, one for each method and protocol,
        best stability at P = .90 first.
    """
    unique = {record.id: (record, rows) for record, rows in entries}
    groups: dict[str, list[Entry]] = defaultdict(list)
    for record, rows in sorted(unique.values(), key=lambda entry: entry[0].id):
        groups[record.bundle_sha256].append((record, rows))
    return {
        "format": "board-1",
        "bundles": [_bundle(sha256, group) for sha256, group in sorted(groups.items())],
    }


def _bundle(sha256: str, entries: list[Entry]) -> dict[str, Any]:
    arms: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for record, rows in entries:
        arms[arm_of(record)].append((record, rows))
    rows = [_row(arm, group, arms) for arm, group in arms.items()]
    return {
        "sha256": sha256,
        "base": entries[0][0].base["pretrained"],
        "rows": sorted(rows, key=_rank_key),
    }


def _rank_key(row: dict[str, Any]) -> tuple[bool, float, str, str]:
    crossing = row["stability_at_p90"]
    value = crossing["value"] if crossing else row["stability"]["value"]
    return (crossing is None, -value, row["method"], row["protocol"])


def arm_of(record: Record) -> tuple[str, str]:
    """Returns method and protocol of a record as they are shown; seeds of an arm share them."""
    name, settings = record.method.name, record.method.settings
    try:
        _, config = methods.resolve(name, settings)
        label = methods.describe(name, config)
    except UserError:
        label = name
    protocol = record.protocol
    return label, f"{protocol.name}@{protocol.sha256[:8]}" if protocol else "open"


def _row(
    arm: tuple[str, str], entries: list[Entry], arms: dict[tuple[str, str], list[Entry]]
) -> dict[str, Any]:
    method, protocol = arm
    return {
        "method": method,
        "protocol": protocol,
        "track": entries[0][0].track,
        "level": entries[0][0].level,
        "records": [record.id for record, _ in entries],
        "seeds": sorted(record.seed for record, _ in entries if record.seed is not None),
        "task_learning": _mean(entries, KNOWN),
        "plasticity": _mean(entries, UNKNOWN),
        "stability": _mean(entries, HELDOUT),
        "lost": _average([_metric(record, "lost", "value") for record, _ in entries]),
        "stability_at_p90": _crossing([record for record, _ in entries]),
        "loss_against": {
            name: _loss(entries, arms.get((name, protocol), [])) for name in REFERENCES
        },
        "curve": _mean_curve(entries),
    }


def _metric(record: Record, name: str, field: str) -> float | None:
    value = record.metrics.get(name)
    return value[field] if value else None


def _average(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if values and len(present) == len(values) else None


def _crossing(records: list[Record]) -> dict[str, Any] | None:
    """S@P90 over seeds: the mean and the seeds' range; None if a seed never gets there."""
    values = [_metric(record, "stability_at_p90", "stability") for record in records]
    mean = _average(values)
    if mean is None:
        return None
    present = [value for value in values if value is not None]
    coarse = any(_metric(record, "stability_at_p90", "coarse") for record in records)
    return {"value": mean, "lowest": min(present), "highest": max(present), "coarse": coarse}


def _outcomes(rows: list[Outcome], split: str) -> dict[str, tuple[str, float]]:
    return {
        row["id"]: (row["relation"], float(row["final"])) for row in rows if row["split"] == split
    }


def _mean(entries: list[Entry], split: str) -> dict[str, Any] | None:
    """Averages seeds per fact, then facts; the interval is over facts."""
    seeds = [_outcomes(rows, split) for _, rows in entries]
    ids = sorted(set.intersection(*(set(seed) for seed in seeds)))
    values = [float(np.mean([seed[key][1] for seed in seeds])) for key in ids]
    return _row_of(proportion(values, [seeds[0][key][0] for key in ids]))


def _loss(entries: list[Entry], reference: list[Entry]) -> dict[str, Any] | None:
    """S(reference) - S(method), fact by fact over the seeds that both have."""
    ours = {record.seed: _outcomes(rows, HELDOUT) for record, rows in entries}
    theirs = {record.seed: _outcomes(rows, HELDOUT) for record, rows in reference}
    seeds = sorted(seed for seed in set(ours) & set(theirs) if seed is not None)
    if not seeds:
        return None
    ids = sorted(ours[seeds[0]])
    values = [float(np.mean([theirs[s][key][1] - ours[s][key][1] for s in seeds])) for key in ids]
    return _row_of(mean_difference(values, [ours[seeds[0]][key][0] for key in ids]))


def _row_of(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


def _mean_curve(entries: list[Entry]) -> list[dict[str, Any]]:
    """Averages the curves of seeds that were evaluated at the same steps."""
    steps = [[point.step for point in record.curve] for record, _ in entries]
    if not steps[0] or any(other != steps[0] for other in steps):
        return []
    curves = [curve_points(rows, len(record.curve)) for record, rows in entries]
    return [
        {
            "step": step,
            **{name: _average([curve[i][name] for curve in curves]) for name in curves[0][i]},
            "seeds": [[curve[i]["plasticity"], curve[i]["stability"]] for curve in curves],
        }
        for i, step in enumerate(steps[0])
    ]


def markdown(board: dict[str, Any]) -> str:
    """Renders the board as markdown tables, one for each bundle."""
    parts = []
    for bundle in board["bundles"]:
        table = tabulate(
            [_cells(row) for row in bundle["rows"]],
            headers=["method", "protocol", "seeds", "T", "P", "S", "S@P90", "loss to known-only"],
            tablefmt="github",
            disable_numparse=True,
        )
        parts.append(f"Bundle {bundle['sha256'][:12]} of {bundle['base']}\n\n{table}\n\n{_LEGEND}")
    return "\n\n".join(parts)


_LEGEND = (
    "T task learning, P factual plasticity, S factual stability (95 % interval over facts); "
    "S@P90: stability where plasticity first reaches .90 (seeds' range), ~ fewer than 8 points "
    "before it; loss: S(known_only) - S(method), same seeds, paired interval."
)


def _cells(row: dict[str, Any]) -> list[str]:
    crossing = row["stability_at_p90"]
    at_p90 = "never"
    if crossing:
        mark = "~" if crossing["coarse"] else ""
        at_p90 = (
            f"{mark}{crossing['value']:.3f} ({crossing['lowest']:.3f}-{crossing['highest']:.3f})"
        )
    if not row["curve"] and not crossing:
        at_p90 = "no curve"
    return [
        _escape(row["method"]),
        _escape(row["protocol"].split("@")[0]),
        str(len(row["records"])),
        _number(row["task_learning"]),
        _number(row["plasticity"]),
        _interval(row["stability"]),
        at_p90,
        _interval(row["loss_against"]["known_only"]),
    ]


def _escape(text: str) -> str:
    """Keeps a stranger's name from breaking the table or becoming markup."""
    plain = "".join(c for c in text if c.isprintable())
    return plain.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _number(estimate: dict[str, Any] | None) -> str:
    return f"{estimate['value']:.3f}" if estimate else "not trained"


def _interval(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
