"""What a change of records does to the board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from factual_forgetting.board.board import KEEPS, LEARNS

_FIELDS = (
    f"rank.{LEARNS}", f"rank.{KEEPS}", "stability_at_p90.value", "stability.value",
    "plasticity.value", "task_learning.value", "level", "heldout_in_training",
)  # fmt: skip


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Compares two boards.

    Returns:
        `added` and `removed` ids of records, and `changed`: bundle, method, protocol, field,
        value before and after, for every row that is new, gone or moved.
    """
    old, new = _rows(before), _rows(after)
    changed = []
    for key in sorted(set(old) | set(new)):
        was, now = old.get(key), new.get(key)
        named = dict(zip(("bundle", "method", "protocol"), key, strict=True))
        if was is None or now is None:
            sides = {"before": was and "there", "after": now and "there"}
            changed.append({**named, "field": "row", **sides})
        if now is not None:
            for field in _FIELDS:
                pair = (_get(was, field) if was else None, _get(now, field))
                if pair[0] != pair[1]:
                    changed.append({**named, "field": field, "before": pair[0], "after": pair[1]})
    ids = [{r for row in rows.values() for r in row["records"]} for rows in (old, new)]
    return {
        "added": sorted(ids[1] - ids[0]),
        "removed": sorted(ids[0] - ids[1]),
        "changed": changed,
    }


def _rows(board: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (bundle["sha256"][:12], row["method"], row["protocol"]): row
        for bundle in board["bundles"]
        for row in bundle["rows"]
    }


def _get(row: Mapping[str, Any], field: str) -> Any:
    value: Any = row
    for key in field.split("."):
        value = value[key] if value is not None else None
    return value


def markdown(found: Mapping[str, Any]) -> str:
    """Renders a difference for a pull request."""
    told = [
        f"{len(found['added'])} records added, {len(found['removed'])} removed or superseded.",
    ]
    names = ("bundle", "method", "protocol", "field", "before", "after")
    rows = [[_cell(change[name]) for name in names] for change in found["changed"]]
    if rows:
        told.append(tabulate(rows, names, tablefmt="github", disable_numparse=True))
    else:
        told.append("The board doesn't change.")
    return "\n\n".join(told)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return "".join(c for c in text if c.isprintable()).replace("|", "\\|").replace("<", "&lt;")
