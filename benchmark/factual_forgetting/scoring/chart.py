"""The chart of stability against plasticity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from factual_forgetting.plotting import new_figure, plain_text, save_figure
from factual_forgetting.scoring.crossing import PLASTICITY_LEVEL

_MARKERS = "osD^vPX*<>"
_FEW = 10
# Plasticity and stability at each point of training; None where they weren't measured.
Curve = Sequence[Sequence[float | None]]


def draw_frontier(arms: Iterable[tuple[str, Sequence[Curve]]], path: Path) -> None:
    """Draws stability against plasticity over training, a line an arm.

    Args:
        arms: The name of each arm and the curves of its seeds. Seeds are averaged point by
            point, as far as the shortest goes; thin lines are the seeds.
        path: Image to write; its suffix decides the format.
    """
    import matplotlib as mpl

    drawn = list(arms)
    few = len(drawn) <= _FEW
    palette = mpl.color_sequences["tab10" if few else "tab20"]
    figure = new_figure(9, 6)
    axes = figure.subplots()
    for index, (name, curves) in enumerate(drawn):
        color, marker = palette[index % len(palette)], _MARKERS[index % len(_MARKERS)]
        seeds = [np.array(curve, dtype=float) for curve in curves]
        shortest = min(map(len, seeds))
        mean = np.mean([seed[:shortest] for seed in seeds], axis=0)
        end = np.mean([seed[-1] for seed in seeds], axis=0)
        for seed in seeds:
            axes.plot(*seed.T, color=color, linewidth=0.7, alpha=0.35)
        axes.plot(*mean.T, color=color, linewidth=1.6, alpha=0.9)
        axes.plot(*end, marker, color=color, markersize=8, label=plain_text(name))
    axes.axvline(PLASTICITY_LEVEL, color="grey", linestyle=":", linewidth=1)
    axes.text(PLASTICITY_LEVEL, 0.01, " P = .90", transform=axes.get_xaxis_transform())
    axes.set(
        xlabel="factual plasticity P (accuracy on D_Unk, learned)",
        ylabel="factual stability S (accuracy on D_Held, kept)",
        title="What fine-tuning learns and what it costs (thin: seeds; marker: end of training)",
        xlim=(-0.02, 1.02),
    )
    axes.legend(loc="lower left", fontsize=8, ncols=1 if few else 2)
    axes.grid(alpha=0.25)
    save_figure(figure, path)
