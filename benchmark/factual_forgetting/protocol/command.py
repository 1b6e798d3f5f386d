"""`factual-forgetting finetune`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.config import parse
from factual_forgetting.modelargs import parse_model_args, parse_pairs
from factual_forgetting.protocol import methods
from factual_forgetting.protocol.config import Execution, load_protocol, recipe_names


def add_parser(subparsers: Any) -> None:
    """Adds `finetune`."""
    parser = subparsers.add_parser("finetune", help="train a bundle's base by a method")
    parser.add_argument("--bundle", required=True, help="directory, or almanac")
    parser.add_argument("--method", required=True, help=", ".join(methods.METHODS))
    parser.add_argument("--method_args", default="", help="its settings, key=value,key=value")
    parser.add_argument(
        "--protocol", default="paper-v1", help=f"{', '.join(recipe_names())}, or a .yaml file"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the facts")
    parser.add_argument(
        "--model_args", default=None, help="pretrained=PATH, if not where the bundle says"
    )
    parser.add_argument(
        "--allow_foreign_base",
        action="store_true",
        help="train another model than the bundle's base; written into the run",
    )
    add_execution(parser)
    parser.add_argument("--output_path", type=Path, required=True)
    parser.set_defaults(run=run)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `Execution`."""
    parser.add_argument(
        "--device_batch_size", type=int, help="facts in one forward pass; the batch by default"
    )
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="compute activations twice, keep none"
    )
    parser.add_argument("--report_to", default="none", help="trackers of transformers (none)")


def execution_of(args: argparse.Namespace) -> Execution:
    """Reads the options of `Execution`."""
    values = {name: getattr(args, name) for name in Execution.model_fields}
    return parse(Execution, values, "finetune")


def run(args: argparse.Namespace) -> None:
    """Trains, and prints the curve."""
    protocol = load_protocol(args.protocol)
    _, config = methods.resolve(args.method, parse_pairs(args.method_args))
    bundle = load_bundle(locate_bundle(args.bundle))
    pretrained = parse_model_args(args.model_args)["pretrained"] if args.model_args else None
    foreign = None
    if args.allow_foreign_base and pretrained:
        foreign = checkpoint.identity(pretrained)

    from factual_forgetting.protocol.curve import CURVE
    from factual_forgetting.protocol.processes import is_main_process
    from factual_forgetting.protocol.train import Run, finetune

    finetune(
        Run(bundle, protocol, args.method, config, args.seed, foreign),
        args.output_path,
        pretrained=pretrained,
        execution=execution_of(args),
    )
    if not is_main_process():
        return
    lines = list(files.read_jsonl(args.output_path / CURVE))
    columns = ["step", "loss", "task_learning", "plasticity", "stability"]
    table = [[line[name] for name in columns] for line in lines]
    sys.stdout.write(tabulate(table, headers=columns, tablefmt="github", floatfmt=".3f") + "\n")
    sys.stdout.write(f"\ncheckpoint: {args.output_path}\n")
