"""Figures without a window, whose files are the same bytes each time they are drawn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What would differ from file to file: the version of matplotlib, and the time.
_METADATA = {".png": {"Software": None}, ".svg": {"Date": None}}


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; its subplots and legends find room by themselves.

    Args:
        width: In inches.
        height: In inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Writes a figure in the format of the path's suffix."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "factual-forgetting"}):
        figure.savefig(path, dpi=dpi, metadata=_METADATA.get(path.suffix))


def figure_svg(figure: Figure) -> bytes:
    """Returns a figure as an SVG file."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "figure.svg"
        save_figure(figure, path)
        return path.read_bytes()


def plain_text(text: str) -> str:
    """Keeps matplotlib from reading a formula, or a hidden label, into a text."""
    return text.replace("$", r"\$").lstrip("_")
