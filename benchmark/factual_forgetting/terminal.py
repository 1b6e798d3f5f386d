"""What commands tell people: nothing of a stranger's moves the cursor, no text is a number."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from factual_forgetting.errors import visible


def shown(text: str) -> str:
    """Returns lines of text with everything but their ends made visible; JSON stays JSON."""
    return "\n".join(map(visible, text.split("\n")))


def tell(text: str) -> None:
    """Writes a line of text, or several, to stdout."""
    sys.stdout.write(f"{shown(text)}\n")


def note(text: str) -> None:
    """Writes a line to stderr; stdout is for what was asked for."""
    sys.stderr.write(f"{visible(text)}\n")


def table(
    rows: Sequence[Sequence[Any]],
    headers: Sequence[str],
    *,
    style: str = "github",
    numbers: bool = False,
) -> str:
    """Lays out a table; a text stays what it is, though it may look like a number or a border.

    Args:
        rows: Numbers, with three decimals where they aren't whole, and texts; None is `-`.
        headers: The columns' names.
        style: tabulate's name of the layout.
        numbers: Whether columns of numbers stand at the right.
    """
    columns = zip(*rows, strict=True)
    right = [all(isinstance(cell, int | float | None) for cell in column) for column in columns]
    sides = ["right" if numbers and each else "left" for each in right]
    cells, names = [list(map(_cell, row)) for row in rows], list(map(_cell, headers))
    aligned = sides if rows else None
    return str(tabulate(cells, names, style, colalign=aligned, disable_numparse=True))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else visible(str(value))
    return text.replace("|", "\\|")
