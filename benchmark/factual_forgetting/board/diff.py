"""What a change of records does to the board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from factual_forgetting.board.board import KEEPS, LEARNS
from factual_forgetting.board.tables import flat, markdown_text

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
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        sides: dict[str, tuple[Any, Any]] = {"row": (was and "there", now and "there")}
        if now:
            sides |= {field: (was and was.get(field), now.get(field)) for field in _FIELDS}
        named = dict(zip(("bundle", "method", "protocol"), key, strict=True))
        changed += [
            {**named, "field": field, "before": first, "after": second}
            for field, (first, second) in sides.items()
            if first != second
        ]
    ids = [{r for row in rows.values() for r in row["records"].split()} for rows in (old, new)]
    return {
        "added": sorted(ids[1] - ids[0]),
        "removed": sorted(ids[0] - ids[1]),
        "changed": changed,
    }


def _rows(board: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (bundle["sha256"][:12], row["method"], row["protocol"]): flat(row)
        for bundle in board["bundles"]
        for row in bundle["rows"]
    }


def diff_text(found: Mapping[str, Any]) -> str:
    """Renders a difference as markdown, for a pull request."""
    head = f"{len(found['added'])} records added, {len(found['removed'])} removed or superseded."
    names = ("bundle", "method", "protocol", "field", "before", "after")
    rows = [[_cell(change[name]) for name in names] for change in found["changed"]]
    table = tabulate(rows, names, tablefmt="github", disable_numparse=True)
    return "\n\n".join([head, table if rows else "The board doesn't change."])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else markdown_text(str(value))
