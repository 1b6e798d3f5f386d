"""Figures of the interference experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting.mechanism.conditions import OTHER, SAME
from factual_forgetting.mechanism.findings import Row, bases_of, cloning_of, grid_of, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"name": "#c0392b", "matched": "#e67e22", "identifier": "#2471a3", "known": "#7d3c98"}
_LINES = {"sft": "-", "self_distillation": "--"}
_METHODS = {"sft": "SFT", "self_distillation": "self-distillation"}
_MARKERS = "v^os"

FORGETTING, DRIFT, OVERLAP = "forgetting.png", "drift.png", "overlap.png"
CLONING, CAPACITY = "cloning.png", "capacity.png"


def draw_all(found: Row, folder: Path) -> None:
    """Draws what the findings have: the grid of the first base, and the rival hypotheses."""
    main, cloning, bases = grid_of(found), cloning_of(found), bases_of(found)
    draw_forgetting(main, found["level"], folder / FORGETTING)
    draw_drift(main, folder / DRIFT)
    draw_overlap(main, folder / OVERLAP)
    if cloning:
        draw_cloning(cloning, folder / CLONING)
    if bases:
        draw_capacity(bases, folder / CAPACITY)


def draw_forgetting(arms: Sequence[Row], level: float, path: Path) -> None:
    """Draws forgetting against the number of new facts, as the paper's figure does."""
    figure, axes = _figure(2)
    for name, panel, title in zip(
        (SAME, OTHER),
        axes,
        ("D_Held of the same relation", "D_Held of other relations"),
        strict=True,
    ):
        for place, ((keys, method), group) in enumerate(_lines(arms).items()):
            aside = 1.04**place  # so that intervals don't cover one another
            _line(panel, name, keys, method, [a for a in group if a["at_level"]], aside)
        panel.set(xscale="log", xlabel="new facts of one relation", title=title)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel(f"forgotten since the peak, where P = {level}")
    _legend_below(figure, axes[0])
    _save(figure, path)


def _lines(arms: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for arm in sorted(arms, key=lambda row: row["facts"]):
        groups.setdefault((arm["keys"], arm["method"]), []).append(arm)
    return groups


def _line(
    panel: Axes, name: str, keys: str, method: str, arms: Sequence[Row], aside: float
) -> None:
    shown = [(a["facts"] * aside, a["at_level"][name]) for a in arms if a["at_level"][name]]
    if not shown:
        return
    x, y = [facts for facts, _ in shown], [row["value"] for _, row in shown]
    errors = [
        [row["value"] - row["low"] for _, row in shown],
        [row["high"] - row["value"] for _, row in shown],
    ]
    panel.errorbar(
        x,
        y,
        yerr=errors,
        color=_COLORS[keys],
        linestyle=_LINES[method],
        marker="o" if method == "sft" else "s",
        capsize=3,
        label=f"{keys} keys, {_METHODS[method]}",
    )
    for facts, row in shown:
        panel.plot([facts] * len(row["seeds"]), row["seeds"], ".", color=_COLORS[keys], alpha=0.5)


def draw_drift(arms: Sequence[Row], path: Path) -> None:
    """Draws drift of the middle layer over training, and of every layer where P is reached."""
    figure, (over, layers) = _figure(2)
    most = max(arm["facts"] for arm in arms)
    for arm in (arm for arm in arms if arm["facts"] == most):
        style = {"color": _COLORS[arm["keys"]], "linestyle": _LINES[arm["method"]]}
        label = f"{arm['keys']} keys, {_METHODS[arm['method']]}"
        curve = arm["drift_curve"]
        over.plot([p["passes"] for p in curve], [p["cosine"] for p in curve], label=label, **style)
        depths = (arm["at_level"] or arm["at_end"])["layers"]
        layers.plot(range(len(depths)), depths, marker="o", **style)
    over.set(xlabel="passes over the facts", ylabel="drift (1 - cosine)", title="Middle layer")
    layers.set(xlabel="layer (0: embeddings)", title="By layer, at equal plasticity")
    layers.xaxis.get_major_locator().set_params(integer=True)
    for panel in (over, layers):
        panel.grid(alpha=0.25)
    _legend_below(figure, over)
    figure.suptitle(f"Subjects of D_Held, same relation, {most:,} new facts")
    _save(figure, path)


def draw_overlap(arms: Sequence[Row], path: Path) -> None:
    """Draws how forgetting rises with nearness, for each condition where it can be said."""
    shown = [arm for arm in arms if arm["overlap"]]
    figure, (panel,) = _figure(1)
    for place, arm in enumerate(shown):
        row = arm["overlap"]["controlled"]
        color = _COLORS[arm["keys"]]
        panel.errorbar(row["value"], place, xerr=_error(row), fmt="o", color=color, capsize=3)
    names = [f"{a['keys']}, {a['facts']:,}, {_METHODS[a['method']]}" for a in shown]
    panel.set_yticks(range(len(shown)), names)
    panel.invert_yaxis()
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set(xlabel="more forgotten at one standard deviation\nmore of nearness")
    _save(figure, path)


def draw_cloning(arms: Sequence[Row], path: Path) -> None:
    """Draws what as many targets cost, with new associations and without."""
    figure, (panel,) = _figure(1)
    for place, arm in enumerate(arms):
        row = arm["at_end"][SAME]
        color = _COLORS[arm["keys"]]
        panel.errorbar(row["value"], place, xerr=_error(row), fmt="o", color=color, capsize=3)
    panel.set_yticks(
        range(len(arms)), [f"{arm['keys']} keys,\n{arm['values']} answers" for arm in arms]
    )
    panel.invert_yaxis()
    panel.set(xlabel="forgotten, same relation", title="After equally many passes")
    panel.grid(alpha=0.25)
    _save(figure, path)


def draw_capacity(bases: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draws forgetting against the share of capacity, a marker for each size of base."""
    figure, (panel,) = _figure(1)
    sizes = sorted({arm["parameters"] for group in bases.values() for arm in group})
    for keys, group in bases.items():
        for arm in group:
            row, parameters = arm["at_level"][SAME], arm["parameters"]
            panel.errorbar(
                arm["share_of_capacity"],
                row["value"],
                yerr=_error(row),
                fmt=_MARKERS[sizes.index(parameters) % len(_MARKERS)],
                color=_COLORS[keys],
                label=f"{keys} keys, {size(parameters)} parameters",
                capsize=3,
            )
    panel.set(xscale="log", xlabel="share of capacity that the new facts take")
    panel.set_ylabel("forgotten, same relation")
    panel.xaxis.set_minor_formatter("")
    panel.legend(*_distinct(panel), fontsize=7)
    panel.grid(alpha=0.25)
    _save(figure, path)


def _legend_below(figure: Figure, panel: Axes) -> None:
    """Explains a panel's lines under the figure, where no line is covered."""
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )


def _distinct(panel: Any) -> tuple[list[Any], list[str]]:
    """Returns the entries of a legend, each once."""
    entries = {
        label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    return list(entries.values()), list(entries)


def _error(row: Row) -> list[list[float]]:
    """Returns an interval as the lengths of its arms."""
    return [[row["value"] - row["low"]], [row["high"] - row["value"]]]


def _figure(columns: int) -> tuple[Figure, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "factual-forgetting"
    figure, axes = plt.subplots(
        1,
        columns,
        figsize=(5.5 * columns, 4.5),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    return figure, axes[0]


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
