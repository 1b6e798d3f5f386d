"""`factual-forgetting frontier`: stability against plasticity over training, for all methods."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tabulate import tabulate

from factual_forgetting import files, outputs
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.errors import InputError
from factual_forgetting.plotting import new_figure, plain_text, require_image, save_figure
from factual_forgetting.protocol.curve import CURVE, OUTCOMES
from factual_forgetting.protocol.run import CHOSEN, RUN, told_by_run
from factual_forgetting.protocol.settings import method_label, resolve
from factual_forgetting.scoring import metrics

_COLUMNS = {
    "stability_at_p50": "S@P50",
    "stability_at_p90": "S@P90",
    "task_learning": "T",
    "plasticity": "P",
    "stability": "S",
    "forgetting_from_peak": "from peak",
    "forgetting_from_peak_relative": "relative",
    "lost": "lost",
    "gained": "gained",
    "kl_to_base": "KL",
    "teacher_share": "extra",
}
_LEVELS = [index / 100 for index in range(101)]
_MARKERS = "osD^vPX*<>"
_FEW = 10
_OWN = "own"  # of a trainer that followed no recipe
# Plasticity and stability at each point of training; None where they weren't measured.
SeedCurve = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run of a seed.

    Attributes:
        method: Method with its settings, or the name of its arm in a sweep.
        protocol: Name of the protocol.
        curve: Lines of `curve.jsonl`.
        correct: Final outcomes by fact id.
    """

    method: str
    protocol: str
    seed: int
    curve: list[dict[str, Any]]
    correct: dict[str, bool]


def find_runs(paths: Sequence[Path], bundle: Bundle) -> list[Trained]:
    """Reads runs; of a sweep, those that were chosen on validation.

    A path that is no finished run or sweep, or a run of another bundle, raises a UserError.
    """
    found = []
    for path in paths:
        if (path / CHOSEN).exists():
            for arm, row in files.read_json(path / CHOSEN).items():
                found += [_read(path / run, bundle, arm) for run in row["runs"]]
        else:
            found.append(_read(path, bundle, None))
    return found


def _read(path: Path, bundle: Bundle, arm: str | None) -> Trained:
    if (run := told_by_run(path)) is None:
        raise InputError(
            f"{path} is neither a finished run ({RUN}) nor a finished sweep ({CHOSEN})."
        )
    if run["bundle_sha256"] != bundle.sha256:
        raise InputError(f"{path} was trained on another bundle than {bundle.path}. Give --bundle.")
    method, protocol = run["method"]["name"], _OWN
    label = method
    if run["protocol"]:
        label = method_label(method, resolve(method, run["method"]["settings"]))
        protocol = run["protocol"]["name"]
    return Trained(
        arm or label,
        protocol,
        run["seed"],
        list(files.read_jsonl(path / CURVE)),
        {row["id"]: row["correct"][-1] == "1" for row in files.read_jsonl(path / OUTCOMES)},
    )


def frontier(runs: Sequence[Trained], bundle: Bundle) -> list[dict[str, Any]]:
    """Summarises runs by method and protocol, best S@P90 first, those that have none last.

    An arm has `method`, `protocol`, `seeds`; each metric as `mean`, `low` and `high` over seeds,
    or None where a seed has none; and `line`: stability (mean, low, high) at each level of
    plasticity that every seed reaches.
    """
    arms: dict[tuple[str, str], list[Trained]] = defaultdict(list)
    for run in runs:
        arms[run.method, run.protocol].append(run)

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        crossing = row["stability_at_p90"]
        return crossing is None, -(crossing or row["stability"])["mean"]

    return sorted((_row(*arm, seeds, bundle) for arm, seeds in arms.items()), key=place)


def _row(method: str, protocol: str, runs: list[Trained], bundle: Bundle) -> dict[str, Any]:
    seeds = [run.seed for run in runs]
    if len(set(seeds)) != len(seeds):
        raise InputError(f"{method} has two runs of one seed ({seeds}). Give each run once.")
    measured = [_metrics(run, bundle) for run in runs]
    return {
        "method": method,
        "protocol": protocol,
        "seeds": sorted(seeds),
        **{key: _spread([found[key] for found in measured]) for key in _COLUMNS},
        "line": _line(runs),
    }


def _metrics(run: Trained, bundle: Bundle) -> dict[str, float | None]:
    last = run.curve[-1]
    final = metrics.final_metrics(bundle, run.correct)
    return {
        **{key: row and row["value"] for key, row in final.items()},
        **metrics.curve_metrics(run.curve),
        "stability_at_p50": _at(run, 0.5),
        "stability_at_p90": _at(run, 0.9),
        "kl_to_base": last.get("kl_to_base"),
        "teacher_share": last["teacher_tokens"] / last["tokens"] if "tokens" in last else None,
    }


def _at(run: Trained, level: float) -> float | None:
    found = metrics.stability_at(run.curve, level)
    return found["stability"] if found else None


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": fmean(known), "low": min(known), "high": max(known)}


def _line(runs: list[Trained]) -> list[dict[str, float]]:
    first = max(run.curve[1]["plasticity"] for run in runs)
    reached = [level for level in _LEVELS if level >= first]
    spreads = [(level, _spread([_at(run, level) for run in runs])) for level in reached]
    return [{"plasticity": level, **spread} for level, spread in spreads if spread]


def frontier_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table: means over seeds."""
    table = [
        [
            row["method"],
            len(row["seeds"]),
            *(f"{spread['mean']:.3f}" if (spread := row[key]) else "-" for key in _COLUMNS),
        ]
        for row in rows
    ]
    headers = ["method", "seeds", *_COLUMNS.values()]
    return str(tabulate(table, headers=headers, tablefmt="github", disable_numparse=True))


def draw_frontier(arms: Sequence[tuple[str, Sequence[SeedCurve]]], path: Path) -> None:
    """Draws stability against plasticity over training, a line an arm.

    Args:
        arms: The name of each arm and the curves of its seeds. Seeds are averaged point by
            point, as far as the shortest goes; thin lines are the seeds.
        path: Image to write; its suffix decides the format.
    """
    import matplotlib as mpl

    few = len(arms) <= _FEW
    palette = mpl.color_sequences["tab10" if few else "tab20"]
    figure = new_figure(9, 6)
    axes = figure.subplots()
    for index, (name, curves) in enumerate(arms):
        color, marker = palette[index % len(palette)], _MARKERS[index % len(_MARKERS)]
        seeds = [np.array(curve, dtype=float) for curve in curves]
        shortest = min(map(len, seeds))
        mean = np.mean([seed[:shortest] for seed in seeds], axis=0)
        end = np.mean([seed[-1] for seed in seeds], axis=0)
        for seed in seeds:
            axes.plot(*seed.T, color=color, linewidth=0.7, alpha=0.35)
        axes.plot(*mean.T, color=color, linewidth=1.6, alpha=0.9)
        axes.plot(*end, marker, color=color, markersize=8, label=plain_text(name))
    axes.axvline(metrics.PLASTICITY_LEVEL, color="grey", linestyle=":", linewidth=1)
    axes.text(metrics.PLASTICITY_LEVEL, 0.01, " P = .90", transform=axes.get_xaxis_transform())
    axes.set(
        xlabel="factual plasticity P (accuracy on D_Unk, learned)",
        ylabel="factual stability S (accuracy on D_Held, kept)",
        title="What fine-tuning learns and what it costs (thin: seeds; marker: end of training)",
        xlim=(-0.02, 1.02),
    )
    axes.legend(loc="lower left", fontsize=8, ncols=1 if few else 2)
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def add_parser(subparsers: Any) -> None:
    """Adds `frontier`."""
    parser = subparsers.add_parser("frontier", help="draw stability against plasticity of runs")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs or sweeps")
    parser.add_argument("--bundle", default="almanac", help="directory, or almanac (the default)")
    parser.add_argument("--output_path", type=Path, help="a .png or .svg; a .json goes beside it")
    parser.set_defaults(run=_frontier)


def _frontier(args: argparse.Namespace) -> None:
    if args.output_path:
        require_image(args.output_path)
        beside = args.output_path.with_suffix(".json")
        outputs.require_file(beside, outputs.json_with("method", "protocol", "seeds", "line"))
    bundle = load_bundle(locate_bundle(args.bundle))
    runs = find_runs(args.runs, bundle)
    rows = frontier(runs, bundle)
    if args.output_path:
        files.write_json(beside, rows)
        draw_frontier([(row["method"], _curves(row, runs)) for row in rows], args.output_path)
    sys.stdout.write(frontier_markdown(rows) + "\n")


def _curves(row: dict[str, Any], runs: Sequence[Trained]) -> list[SeedCurve]:
    return [
        [(point["plasticity"], point["stability"]) for point in run.curve]
        for run in runs
        if (run.method, run.protocol) == (row["method"], row["protocol"])
    ]
