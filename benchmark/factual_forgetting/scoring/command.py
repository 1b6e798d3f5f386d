"""`factual-forgetting score | tasks-path | register | unregister | env`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from factual_forgetting import files, tasks
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.environment import environment

_METRICS = ("task_learning", "plasticity", "stability", "lost", "gained", "forgetting_from_base")


def add_parser(subparsers: Any) -> None:
    """Adds `score` and the commands that tell lm-eval where our tasks are."""
    score = subparsers.add_parser("score", help="score checkpoints through lm-eval")
    score.add_argument("--model", default="hf", help="model class of lm-eval (hf)")
    score.add_argument(
        "--model_args",
        nargs="+",
        required=True,
        metavar="ARGS",
        help="pretrained=DIR,… or a directory; checkpoints of one run, in order, give a curve",
    )
    score.add_argument("--bundle", default="almanac", help="directory, or almanac (the default)")
    score.add_argument("--batch_size", default="128")
    score.add_argument("--device", default=None)
    score.add_argument("--limit", type=float, default=None)
    score.add_argument("--output_path", type=Path, required=True)
    score.set_defaults(run=_score)

    for name, told, act in (
        ("tasks-path", "print the directory to give to lm_eval --include_path", _tasks_path),
        ("register", "make the bare `lm_eval --tasks factual_forgetting` work", _register),
        ("unregister", "undo register", _unregister),
        ("env", "print versions and hardware, to paste into a report", _env),
    ):
        subparsers.add_parser(name, help=told).set_defaults(run=act)


def _score(args: argparse.Namespace) -> None:
    bundle = load_bundle(locate_bundle(args.bundle))

    from factual_forgetting.scoring.score import score

    points = []
    for model_args in args.model_args:
        written = score(
            bundle,
            args.model,
            model_args,
            args.output_path,
            batch_size=args.batch_size,
            device=args.device,
            limit=args.limit,
        )
        sys.stderr.write(f"results: {written}\n")
        if args.limit is None:
            points.append((model_args, _metrics(written, bundle)))
    if points:
        _tell(points)


def _metrics(written: Path, bundle: Bundle) -> dict[str, Any]:
    from factual_forgetting.scoring.metrics import final_metrics
    from factual_forgetting.scoring.results import read_results

    return final_metrics(bundle, read_results(written, bundle).correct)


def _tell(points: list[tuple[str, dict[str, Any]]]) -> None:
    rows = [[name, *(_cell(metrics[key]) for key in _METRICS)] for name, metrics in points]
    sys.stdout.write(tabulate(rows, headers=["checkpoint", *_METRICS], tablefmt="github") + "\n")
    if len(points) > 1:
        _tell_curve([metrics for _, metrics in points])


def _tell_curve(points: list[dict[str, Any]]) -> None:
    from factual_forgetting.scoring.metrics import stability_at

    # Every checkpoint here is a trained one, so the curve's untrained point is absent.
    pairs = [(m["plasticity"]["value"], m["stability"]["value"]) for m in points]
    crossing = stability_at([(None, None), *pairs])
    if crossing is None:
        sys.stdout.write("\nS@P90: never reached by these checkpoints\n")
        return
    mark = " (coarse: fewer than 8 checkpoints before P = .90)" if crossing.coarse else ""
    sys.stdout.write(f"\nS@P90: {crossing.stability:.3f}{mark}\n")


def _cell(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _tasks_path(args: argparse.Namespace) -> None:
    sys.stdout.write(f"{tasks.tasks_dir()}\n")


def _register(args: argparse.Namespace) -> None:
    sys.stdout.write(f"registered in {tasks.register()}\n")


def _unregister(args: argparse.Namespace) -> None:
    sys.stdout.write(f"removed {tasks.unregister()}\n")


def _env(args: argparse.Namespace) -> None:
    sys.stdout.write(files.dumps(environment(), indent=2) + "\n")
