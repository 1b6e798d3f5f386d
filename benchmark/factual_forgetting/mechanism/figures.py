"""Figures of the interference experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting.mechanism.conditions import OTHER, SAME
from factual_forgetting.mechanism.drift import Row
from factual_forgetting.mechanism.findings import bases_of, cloning_of, grid_of, size
from factual_forgetting.plotting import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"name": "#c0392b", "matched": "#e67e22", "identifier": "#2471a3", "known": "#7d3c98"}
_LINES = {"sft": "-", "self_distillation": "--"}
_METHODS = {"sft": "SFT", "self_distillation": "self-distillation"}
_MARKERS = "v^os"
_DPI = 130


def draw_all(found: Row, folder: Path) -> None:
    """Draws what the findings have: the grid of the first base, and the rival hypotheses."""
    main, cloning, bases = grid_of(found), cloning_of(found), bases_of(found)
    _draw_forgetting(main, found["level"], folder / "forgetting.png")
    _draw_drift(main, folder / "drift.png")
    _draw_overlap([arm for arm in main if arm["overlap"]], folder / "overlap.png")
    if cloning:
        _draw_cloning(cloning, folder / "cloning.png")
    if bases:
        _draw_capacity(bases, folder / "capacity.png")


def _draw_forgetting(arms: Sequence[Row], level: float, path: Path) -> None:
    """Draws forgetting against the number of new facts, as the paper's figure does."""
    figure, axes = _figure(2)
    lines: dict[str, list[Row]] = {}
    for arm in sorted(arms, key=lambda arm: arm["facts"]):
        lines.setdefault(_label(arm), []).append(arm)
    titles = ("D_Held of the same relation", "D_Held of other relations")
    for panel, name, title in zip(axes, (SAME, OTHER), titles, strict=True):
        for place, line in enumerate(lines.values()):
            aside = 1.04**place  # so that intervals don't cover one another
            reached = [arm for arm in line if arm["at_level"]]
            _line(panel, [(a["facts"] * aside, a["at_level"][name]) for a in reached], line[0])
        panel.set(xscale="log", xlabel="new facts of one relation", title=title)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel(f"forgotten since the peak, where P = {level}")
    _legend_below(figure, axes[0])
    save_figure(figure, path, _DPI)


def _line(panel: Axes, points: Sequence[tuple[float, Row | None]], arm: Row) -> None:
    shown = [(x, row) for x, row in points if row]
    if not shown:
        return
    rows = [row for _, row in shown]
    panel.errorbar(
        [x for x, _ in shown],
        [row["value"] for row in rows],
        yerr=_errors(rows),
        marker="o" if arm["method"] == "sft" else "s",
        capsize=3,
        label=_label(arm),
        **_style(arm),
    )
    for x, row in shown:
        seeds = row["seeds"]
        panel.plot([x] * len(seeds), seeds, ".", color=_COLORS[arm["keys"]], alpha=0.5)


def _draw_drift(arms: Sequence[Row], path: Path) -> None:
    """Draws drift of the middle layer over training, and of every layer where P is reached."""
    figure, (over, layers) = _figure(2)
    most = max(arm["facts"] for arm in arms)
    for arm in (arm for arm in arms if arm["facts"] == most):
        curve = [(point["passes"], point["cosine"]) for point in arm["drift_curve"]]
        over.plot(*zip(*curve, strict=True), label=_label(arm), **_style(arm))
        depths = (arm["at_level"] or arm["at_end"])["layers"]
        layers.plot(range(len(depths)), depths, marker="o", **_style(arm))
    over.set(xlabel="passes over the facts", ylabel="drift (1 - cosine)", title="Middle layer")
    layers.set(xlabel="layer (0: embeddings)", title="By layer, at equal plasticity")
    layers.xaxis.get_major_locator().set_params(integer=True)
    for panel in (over, layers):
        panel.grid(alpha=0.25)
    _legend_below(figure, over)
    figure.suptitle(f"Subjects of D_Held, same relation, {most:,} new facts")
    save_figure(figure, path, _DPI)


def _draw_overlap(arms: Sequence[Row], path: Path) -> None:
    """Draws how forgetting rises with nearness, for each condition where it can be said."""
    names = [f"{a['keys']}, {a['facts']:,}, {_METHODS[a['method']]}" for a in arms]
    figure, panel = _forest(arms, [arm["overlap"]["controlled"] for arm in arms], names)
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set(xlabel="more forgotten at one standard deviation\nmore of nearness")
    save_figure(figure, path, _DPI)


def _draw_cloning(arms: Sequence[Row], path: Path) -> None:
    """Draws what as many targets cost, with new associations and without."""
    names = [f"{arm['keys']} keys,\n{arm['values']} answers" for arm in arms]
    figure, panel = _forest(arms, [arm["at_end"][SAME] for arm in arms], names)
    panel.set(xlabel="forgotten, same relation", title="After equally many passes")
    panel.grid(alpha=0.25)
    save_figure(figure, path, _DPI)


def _forest(
    arms: Sequence[Row], estimates: Sequence[Row], names: Sequence[str]
) -> tuple[Figure, Axes]:
    """Draws an estimate an arm, one under the other."""
    figure, (panel,) = _figure(1)
    for place, (arm, row) in enumerate(zip(arms, estimates, strict=True)):
        color, error = _COLORS[arm["keys"]], _errors([row])
        panel.errorbar(row["value"], place, xerr=error, fmt="o", color=color, capsize=3)
    panel.set_yticks(range(len(arms)), names)
    panel.invert_yaxis()
    return figure, panel


def _draw_capacity(bases: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draws forgetting against the share of capacity, a marker for each size of base."""
    figure, (panel,) = _figure(1)
    arms = [arm for group in bases.values() for arm in group]
    sizes = sorted({arm["parameters"] for arm in arms})
    for arm in arms:
        row, parameters = arm["at_level"][SAME], arm["parameters"]
        panel.errorbar(
            arm["share_of_capacity"],
            row["value"],
            yerr=_errors([row]),
            fmt=_MARKERS[sizes.index(parameters) % len(_MARKERS)],
            color=_COLORS[arm["keys"]],
            label=f"{arm['keys']} keys, {size(parameters)} parameters",
            capsize=3,
        )
    panel.set(xscale="log", xlabel="share of capacity that the new facts take")
    panel.set_ylabel("forgotten, same relation")
    panel.xaxis.set_minor_formatter("")
    handles, labels = panel.get_legend_handles_labels()
    distinct = dict(zip(labels, handles, strict=True))
    panel.legend(distinct.values(), distinct.keys(), fontsize=7)
    panel.grid(alpha=0.25)
    save_figure(figure, path, _DPI)


def _figure(columns: int) -> tuple[Figure, Any]:
    figure = new_figure(5.5 * columns, 4.5)
    return figure, figure.subplots(1, columns, squeeze=False, sharey=True)[0]


def _legend_below(figure: Figure, panel: Axes) -> None:
    """Explains a panel's lines under the figure, where no line is covered."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)


def _label(arm: Row) -> str:
    return f"{arm['keys']} keys, {_METHODS[arm['method']]}"


def _style(arm: Row) -> dict[str, Any]:
    return {"color": _COLORS[arm["keys"]], "linestyle": _LINES[arm["method"]]}


def _errors(rows: Sequence[Row]) -> list[list[float]]:
    """Returns intervals as the lengths of their arms, below and above."""
    return [[r["value"] - r["low"] for r in rows], [r["high"] - r["value"] for r in rows]]
