"""What an interference experiment shows: a table, figures, and one page, `report.md`, on both.

What it says of Kaplan et al. 2026 (arXiv 2604.15574) is as far as readers of the paper report.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.mechanism import findings
from factual_forgetting.mechanism.conditions import OTHER, SAME, Settings
from factual_forgetting.mechanism.drift import Row
from factual_forgetting.mechanism.findings import bases_of, cloning_of, grid_of, size
from factual_forgetting.plotting import new_figure, save_figure
from factual_forgetting.protocol.recipe import protocol_sha256
from factual_forgetting.scoring.statistics import interval_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REPORT = "report.md"
_PAGE = Path(__file__).parent / _REPORT
# Tables whose section is left out where they are empty.
_OPTIONAL = ("overlap", "answers", "cloning", "capacity")
_COLORS = {"name": "#c0392b", "matched": "#e67e22", "identifier": "#2471a3", "known": "#7d3c98"}
_LINES = {"sft": "-", "self_distillation": "--"}
_METHODS = {"sft": "SFT", "self_distillation": "self-distillation"}
_MARKERS = "v^os"
_DPI = 130


def write_report(found: Row, bundles: Sequence[Bundle], settings: Settings, folder: Path) -> None:
    """Writes `report.md` beside the figures that it shows.

    Args:
        found: What `findings.summarised` returned.
        bundles: Those of the experiment, that of the main grid first.
        settings: The experiment's.
        folder: Directory of the figures.
    """
    told = _told(found) | {
        "settings": settings,
        "recipe_sha256": protocol_sha256(settings.protocol),
        "bundle": bundles[0],
    }
    missing = [f"{{{name}}}" for name in _OPTIONAL if not told[name]]
    sections = re.split(r"(?m)^(?=## )", _PAGE.read_text(encoding="utf-8"))
    page = "".join(part for part in sections if not any(table in part for table in missing))
    text = re.sub(r"\n{3,}", "\n\n", page.format(**told))
    files.write_atomic(folder / _REPORT, text.encode())


def _told(found: Row) -> Row:
    """Returns what the page tells of the findings, by the names that it has there."""
    grid, cloned, bases, level = grid_of(found), cloning_of(found), bases_of(found), found["level"]
    costs = [arm["at_end"][SAME]["value"] for arm in cloned]
    shares = [arm["share_of_capacity"] for arms in bases.values() for arm in arms]
    return {
        "level": level,
        "grid": arms_table(grid, level),
        **{f"{name}_differences": _differences(found, name) for name in findings.VARIED},
        "tokens": _tokens(grid),
        "overlap": _overlap(grid),
        "answers": arms_table(findings.values_of(found), level),
        "cloned": cloned,
        "cloning": _cloning(cloned),
        "cost": (min(costs, default=0), max(costs, default=0)),
        "bits": findings.BITS_PER_PARAMETER,
        "capacity": _capacity(bases),
        "share": max(shares, default=0),
        "widest": _widest(bases),
        "most": max(arm["facts"] for arm in grid),
        "mixed": "D_Known is mixed into every pass here" if grid[0]["mixed"] else "none",
    }


def arms_table(arms: Sequence[Row], level: float) -> str:
    """Returns the table of arms, at the level or at the end; several bases by their size."""
    rows = [_arm_cells(arm, level) for arm in arms]
    if len({arm["bundle_sha256"] for arm in arms}) > 1:
        sizes = [size(arm["parameters"]) for arm in arms]
        rows = [{"base": told, **row} for told, row in zip(sizes, rows, strict=True)]
    return _table(rows)


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    return tabulate(list(rows), headers="keys", tablefmt="github", disable_numparse=True)


def _arm_cells(arm: Row, level: float) -> dict[str, str]:
    fixed = arm["passes"] is not None
    place = arm["at_end"] if fixed else arm["at_level"] or arm["at_end"]
    missed = "" if fixed or arm["at_level"] else f" (under {level})"
    drift = place["drift"][SAME]
    return {
        "keys": arm["keys"] + ("" if arm["mixed"] else ", alone"),
        "values": arm["values"],
        "new facts": f"{arm['facts']:,}",
        "method": arm["method"],
        "seeds": str(len(arm["seeds"])),
        "passes": f"{place['passes']:.1f}",
        "P": f"{place['plasticity']:.3f}{missed}",
        "forgotten, same relation": interval_text(place[SAME]),
        "other relations": interval_text(place[OTHER]),
        "drift": "-" if drift is None else f"{drift:.3f}",
    }


def _differences(found: Row, differing: str) -> str:
    told, alike = (
        [name for name in names if name != differing]
        for names in (("keys", "method"), ("bundle_sha256", "passes", "mixed", "values"))
    )
    contrasts = [row for row in found["contrasts"] if row["differing"] == differing]
    rows = [
        {
            differing: f"{row['more']} minus {row['than']}",
            "new facts": f"{row['facts']:,}",
            **{name: row[name] for name in told},
            "seeds": ", ".join(map(str, row["seeds"])),
            "more forgotten": interval_text(row),
            "clear of 0": "yes" if row["low"] > 0 or row["high"] < 0 else "no",
        }
        for row in findings.like_first(found, contrasts, *alike)
    ]
    if not rows:
        return ""
    return f"Differences in {differing}, all else alike, fact by fact:\n\n{_table(rows)}"


def _tokens(arms: Sequence[Row]) -> str:
    largest = {arm["keys"]: arm for arm in sorted(arms, key=lambda arm: arm["facts"])}
    return _table(
        {
            "keys": keys,
            "tokens": f"{arm['key_tokens']:.2f}",
            "rank": f"{arm['key_rank']:.0f}",
            "dropped as known already": str(arm["keys_dropped"]),
        }
        for keys, arm in largest.items()
    )


def _overlap(arms: Sequence[Row]) -> str:
    return _table(
        {
            "keys": arm["keys"],
            "new facts": f"{arm['facts']:,}",
            "method": arm["method"],
            "nearness": f"{arm['overlap']['nearness']:.2f}",
            "slope": interval_text(arm["overlap"]["controlled"]),
            "without controls": interval_text(arm["overlap"]["alone"]),
        }
        for arm in arms
        if arm["overlap"]
    )


def _cloning(arms: Sequence[Row]) -> str:
    return _table(
        {
            "targets": f"{arm['keys']} keys, {arm['values']} answers",
            "facts": f"{arm['facts']:,}",
            "P": f"{arm['at_end']['plasticity']:.3f}",
            "forgotten, same relation": interval_text(arm["at_end"][SAME]),
            "abstained": f"{arm['at_end']['abstained'][SAME]:.3f}",
            "other relations": interval_text(arm["at_end"][OTHER]),
        }
        for arm in arms
    )


def _capacity(bases: Mapping[str, Sequence[Row]]) -> str:
    return _table(
        {
            "parameters": size(arm["parameters"]),
            "keys": keys,
            "new facts": f"{arm['facts']:,}",
            "share of capacity": f"{arm['share_of_capacity']:.2e}",
            "forgotten, same relation": interval_text(arm["at_level"][SAME]),
        }
        for keys, arms in bases.items()
        for arm in sorted(arms, key=lambda arm: (arm["facts"], arm["parameters"]))
    )


def _widest(bases: Mapping[str, Sequence[Row]]) -> float:
    """Returns the largest difference between kinds of keys on one base with as many facts."""
    alike: dict[tuple[str, int], list[float]] = defaultdict(list)
    for arms in bases.values():
        for arm in arms:
            alike[arm["bundle_sha256"], arm["facts"]].append(arm["at_level"][SAME]["value"])
    return max((max(values) - min(values) for values in alike.values()), default=0.0)


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
    titles = {SAME: "D_Held of the same relation", OTHER: "D_Held of other relations"}
    for panel, (name, title) in zip(axes, titles.items(), strict=True):
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
    names = [f"{a['keys']}, {a['facts']:,}, {_METHODS[a['method']]}" for a in arms]
    figure, panel = _forest(arms, [arm["overlap"]["controlled"] for arm in arms], names)
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set(xlabel="more forgotten at one standard deviation\nmore of nearness")
    save_figure(figure, path, _DPI)


def _draw_cloning(arms: Sequence[Row], path: Path) -> None:
    names = [f"{arm['keys']} keys,\n{arm['values']} answers" for arm in arms]
    figure, panel = _forest(arms, [arm["at_end"][SAME] for arm in arms], names)
    panel.set(xlabel="forgotten, same relation", title="After equally many passes")
    panel.grid(alpha=0.25)
    save_figure(figure, path, _DPI)


def _forest(
    arms: Sequence[Row], estimates: Sequence[Row], names: Sequence[str]
) -> tuple[Figure, Axes]:
    figure, (panel,) = _figure(1)
    for place, (arm, row) in enumerate(zip(arms, estimates, strict=True)):
        color, error = _COLORS[arm["keys"]], _errors([row])
        panel.errorbar(row["value"], place, xerr=error, fmt="o", color=color, capsize=3)
    panel.set_yticks(range(len(arms)), names)
    panel.invert_yaxis()
    return figure, panel


def _draw_capacity(bases: Mapping[str, Sequence[Row]], path: Path) -> None:
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
    distinct = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
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
    return [[r["value"] - r["low"] for r in rows], [r["high"] - r["value"] for r in rows]]
