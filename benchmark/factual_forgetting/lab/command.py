"""`factual-forgetting demo | pretrain`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factual_forgetting import files, outputs
from factual_forgetting.config import load_yaml, parse
from factual_forgetting.errors import InputError
from factual_forgetting.facts.command import add_source_arguments, facts_from_arguments

ALMANAC_RECIPE = Path(__file__).parent / "almanac-base.yaml"


def add_parser(subparsers: Any) -> None:
    """Adds the commands of the laboratory."""
    demo = subparsers.add_parser("demo", help="the whole path on the embedded world, in minutes")
    demo.add_argument("--output_path", type=Path, default=Path("demo"))
    demo.add_argument("--quick", action="store_true", help="few facts and steps: does it run?")
    demo.set_defaults(run=_demo, resumes=True)
    told = "pre-train a small base that knows a stated part of a source"
    pretrain = subparsers.add_parser("pretrain", help=told)
    add_source_arguments(pretrain)
    pretrain.add_argument(
        "--config", type=Path, default=ALMANAC_RECIPE, help="recipe (the embedded base's)"
    )
    pretrain.add_argument(
        "--exposures", type=Path, help="JSON Lines {id, exposures}; drawn by the recipe if absent"
    )
    pretrain.add_argument("--output_path", type=Path, required=True)
    pretrain.set_defaults(run=_pretrain)


def _demo(args: argparse.Namespace) -> None:
    from factual_forgetting.lab.demo import run_demo

    run_demo(args.output_path, quick=args.quick)


def _pretrain(args: argparse.Namespace) -> None:
    from factual_forgetting.lab.pretrain import PretrainConfig, pretrain_base

    outputs.require_folder(args.output_path)
    config = parse(PretrainConfig, load_yaml(args.config), str(args.config))
    facts = list(facts_from_arguments(args)[0])
    counts = None
    if args.exposures:
        counts = {row["id"]: int(row["exposures"]) for row in files.read_jsonl(args.exposures)}
        missing = [fact.id for fact in facts if fact.id not in counts]
        if missing:
            raise InputError(
                f"{args.exposures} lacks {len(missing)} of {len(facts)} facts, "
                f"the first {missing[0]}. State 0 for a fact that is never told."
            )
    pretrain_base(facts, config, args.output_path, counts)
