"""Plots of a board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_MARKERS = "osD^vPX*<>"


def plot_frontier(bundle: dict[str, Any], path: Path) -> None:
    """Draws stability against plasticity over the curve, a line a method, thin lines the seeds.

    Args:
        bundle: One entry of a board's `bundles`.
        path: Image to write; its suffix decides the format.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "factual-forgetting"
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    lowest = 1.0
    for index, row in enumerate(row for row in bundle["rows"] if row["curve"]):
        color = f"C{index}"
        curve = row["curve"]
        for seed in range(len(curve[0]["seeds"])):
            pairs = [point["seeds"][seed] for point in curve]
            axes.plot(*zip(*pairs, strict=True), color=color, linewidth=0.7, alpha=0.35)
        x = [point["plasticity"] for point in curve]
        y = [point["stability"] for point in curve]
        axes.plot(x, y, color=color, linewidth=1.6, label=row["method"], alpha=0.9)
        axes.plot(x[-1], y[-1], _MARKERS[index % len(_MARKERS)], color=color, markersize=8)
        lowest = min(lowest, *y)
    axes.axvline(0.9, color="grey", linestyle=":", linewidth=1)
    axes.annotate("P = .90", (0.9, lowest), xytext=(-4, 0), textcoords="offset points", ha="right")
    axes.set(
        xlabel="factual plasticity P (accuracy on D_Unk, learned)",
        ylabel="factual stability S (accuracy on D_Held, kept)",
        title="What fine-tuning learns and what it costs (marker: end of training)",
        xlim=(-0.02, 1.02),
    )
    axes.legend(loc="lower left", fontsize=9)
    axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
    plt.close(figure)
