"""`factual-forgetting finetune | sweep`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting import checkpoint, outputs
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.config import load_yaml, parse, parse_seed
from factual_forgetting.errors import InputError
from factual_forgetting.modelargs import parse_model_args, parse_settings
from factual_forgetting.protocol import recipe
from factual_forgetting.protocol.curve import read_curve
from factual_forgetting.protocol.run import CHOSEN, RUNS, Run
from factual_forgetting.protocol.settings import SETTINGS, resolve
from factual_forgetting.terminal import table, tell

if TYPE_CHECKING:
    from factual_forgetting.protocol.sweep import SweepRun


def add_parser(subparsers: Any) -> None:
    """Adds `finetune` and `sweep`."""
    parser = subparsers.add_parser("finetune", help="train a bundle's base by a method")
    parser.add_argument("--bundle", required=True, help="directory, or almanac")
    parser.add_argument("--method", required=True, help=", ".join(SETTINGS))
    parser.add_argument("--method_args", default="", help="its settings, key=value,… or JSON")
    named = f"{', '.join(recipe.recipe_names())}, or a .yaml file"
    parser.add_argument("--protocol", default="paper-v1", help=named)
    parser.add_argument("--seed", type=parse_seed, default=0, help="decides the order of the facts")
    parser.add_argument(
        "--model_args", help="pretrained=PATH (and peft=PATH), if not where the bundle says"
    )
    parser.add_argument(
        "--allow_foreign_base",
        action="store_true",
        help="train another model than the bundle's base; written into the run",
    )
    _add_execution(parser)
    parser.add_argument("--output_path", type=Path, required=True)
    parser.set_defaults(run=_finetune, resumes=True)

    sweep = subparsers.add_parser("sweep", help="train methods x rates x strengths x seeds")
    verbs = sweep.add_subparsers(required=True, metavar="VERB")
    for name, told, act in (
        ("plan", "tell what would run and how long it takes, measured on a few steps", _plan),
        ("run", "train what isn't done, and choose each arm's trial on validation", _sweep),
    ):
        verb = verbs.add_parser(name, help=told)
        verb.add_argument("config", type=Path, help="the sweep, a .yaml file")
        verb.add_argument("--output_path", type=Path, required=True)
        _add_execution(verb)
        verb.set_defaults(run=act, resumes=act is _sweep)


def _add_execution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device_batch_size", type=int, help="facts in one forward pass; the batch by default"
    )
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="compute activations twice, keep none"
    )
    parser.add_argument("--report_to", default="none", help="trackers of transformers (none)")
    parser.add_argument(
        "--resume_every",
        type=int,
        default=1,
        help="points of the curve between two states to resume from, of 12 bytes a parameter (1)",
    )


def _execution(args: argparse.Namespace) -> recipe.Execution:
    values = {name: getattr(args, name) for name in recipe.Execution.model_fields}
    return parse(recipe.Execution, values, "execution")


def _finetune(args: argparse.Namespace) -> None:
    protocol = recipe.load_protocol(args.protocol)
    settings = resolve(args.method, parse_settings(args.method_args))
    bundle = load_bundle(locate_bundle(args.bundle))
    given = _base_arguments(args)
    place, adapter = given.get("pretrained"), given.get("peft")
    foreign = None
    if place and args.allow_foreign_base:
        foreign = checkpoint.identity(place, given.get("revision"), adapter)
    run = Run(bundle, protocol, args.method, settings, args.seed, foreign)

    from factual_forgetting.protocol.train import finetune

    execution = _execution(args)
    finetune(run, args.output_path, pretrained=place, adapter=adapter, execution=execution)
    _leave_group()
    if not recipe.is_main_process():
        return
    columns = ["step", "loss", "task_learning", "plasticity", "stability"]
    rows = [[point[name] for name in columns] for point in read_curve(args.output_path)]
    tell(f"{table(rows, columns, numbers=True)}\n\ncheckpoint: {args.output_path}")


def _leave_group() -> None:
    """Leaves the group of processes: one that exits with gloo's threads may abort, and end all."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _base_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Where the base is; whatever else decides a run stands in its protocol."""
    given = parse_model_args(args.model_args) if args.model_args else {}
    known = {"pretrained", "peft", *(["revision"] if args.allow_foreign_base else [])}
    if unknown := ", ".join(sorted(set(given) - known)):
        raise InputError(
            f"finetune takes no {unknown} in --model_args, only where the base is (pretrained=…, "
            "peft=…, and revision=… with --allow_foreign_base). How it trains is told by "
            "--protocol."
        )
    if not given.get("pretrained") and (args.model_args or args.allow_foreign_base):
        raise InputError(
            "--model_args and --allow_foreign_base need the base's place. Give --model_args "
            "pretrained=…"
        )
    return given


def _sweep_runs(args: argparse.Namespace) -> list[SweepRun]:
    from factual_forgetting.protocol.sweep import Sweep, sweep_runs

    sweep = parse(Sweep, load_yaml(args.config), str(args.config))
    return sweep_runs(sweep, load_bundle(locate_bundle(sweep.bundle)), args.output_path)


def _plan(args: argparse.Namespace) -> None:
    from factual_forgetting.protocol.sweep import plan_sweep

    rows = plan_sweep(_sweep_runs(args), _execution(args))
    total = {key: sum(row[key] for row in rows) for key in ("runs", "done", "seconds")}
    told = [
        [row["arm"], row["runs"], row["done"], _duration(row["seconds"])]
        for row in [*rows, {"arm": "all", **total}]
    ]
    headers = ["arm", "runs", "done", "time for the rest"]
    tell(table(told, headers, numbers=True))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _swept_there(folder: Path) -> bool:
    return outputs.json_with()(folder / CHOSEN) and (folder / RUNS).is_dir()


def _sweep(args: argparse.Namespace) -> None:
    from factual_forgetting.protocol.sweep import run_all

    outputs.require_folder(args.output_path, CHOSEN, begun=_swept_there)
    runs = _sweep_runs(args)
    with outputs.taken(args.output_path):
        chosen = run_all(runs, args.output_path, _execution(args))
    columns = ["learning_rate", "strength", "score", "trials"]
    rows = [[arm, *(f"{row[name]:g}" for name in columns)] for arm, row in chosen.items()]
    told = table(rows, ["arm", *columns])
    tell(f"{told}\n\nnext: factual-forgetting frontier {args.output_path}")
