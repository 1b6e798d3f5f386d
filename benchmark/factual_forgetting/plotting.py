"""Figures without a window, whose files are the same bytes each time they are drawn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from factual_forgetting import files, outputs
from factual_forgetting.errors import InputError

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
    """Writes a figure in the format of the path's suffix, as a whole or not at all."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "factual-forgetting"}), files.atomic(path) as stream:
        figure.savefig(stream, format=path.suffix[1:], dpi=dpi, metadata=_METADATA[path.suffix])


def require_image(path: Path) -> None:
    """Finds out whether a figure can be written to a path before the work for it begins.

    Raises:
        UserError: If not, or if something else than a figure of ours is there.
    """
    if path.suffix not in _METADATA:
        raise InputError(f"{path} has to end in {' or '.join(_METADATA)}. Rename it.")
    outputs.require_file(path, _is_figure)


def _is_figure(path: Path) -> bool:
    """Tells `save_figure`'s files: resolution and no software in PNG, no date in SVG."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if path.suffix == ".svg":
        return b"matplotlib.org" in head and b"<dc:date>" not in head
    return head.startswith(b"\x89PNG") and head[37:41] == b"pHYs" and b"tEXt" not in head


def figure_svg(figure: Figure) -> bytes:
    """Returns a figure as an SVG file."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "figure.svg"
        save_figure(figure, path)
        return path.read_bytes()


def plain_text(text: str) -> str:
    """Keeps matplotlib from reading a formula, or a hidden label, into a text."""
    return text.replace("$", r"\$").lstrip("_")
