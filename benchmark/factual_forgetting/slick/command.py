"""`factual-forgetting classify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from factual_forgetting import checkpoint
from factual_forgetting.config import parse
from factual_forgetting.facts.command import add_source_arguments, facts_from_arguments
from factual_forgetting.modelargs import parse_model_args
from factual_forgetting.slick.answers import Engine
from factual_forgetting.slick.engines import LMEvalEngine, load_causal_lm
from factual_forgetting.slick.labelling import (
    SlickConfig,
    classify,
    load_labels,
    relation_table,
)
from factual_forgetting.slick.prefix import PrefixEngine


def add_parser(subparsers: Any) -> None:
    """Adds `classify`."""
    parser = subparsers.add_parser("classify", help="label facts by what a base knows (SLiCK)")
    add_source_arguments(parser)
    parser.add_argument("--model", default="hf", help="model class of lm-eval (hf)")
    parser.add_argument("--model_args", default="pretrained=almanac", help="its arguments")
    parser.add_argument("--batch_size", default="128")
    parser.add_argument("--device", default=None)
    parser.add_argument("--engine", choices=("prefix", "lm-eval"), default=None)
    parser.add_argument("--runs", type=int, default=20, help="few-shot configurations (20)")
    parser.add_argument("--shots", type=int, default=3, help="exemplars in each (3)")
    parser.add_argument("--exemplar_seed", type=int, default=0)
    parser.add_argument("--min_highly_known", type=float, default=0.3)
    parser.add_argument("--output_path", type=Path, required=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Labels the facts and prints the categories by relation."""
    arguments = parse_model_args(args.model_args)
    settings = parse(
        SlickConfig,
        {"runs": args.runs, "shots": args.shots, "seed": args.exemplar_seed},
        "classify",
    )
    facts = facts_from_arguments(args)
    base: dict[str, Any] = {"pretrained": None, "model": args.model, "model_args": arguments}
    if args.model in {"hf", "vllm"}:
        base = checkpoint.identity(arguments["pretrained"], arguments.get("revision"))
    engine = _engine(args, arguments)
    classify(facts, engine, settings, base, args.output_path)
    table = relation_table(load_labels(args.output_path).labels, args.min_highly_known)
    sys.stdout.write(tabulate(table, headers="keys", tablefmt="github", floatfmt=".3f") + "\n")


def _engine(args: argparse.Namespace, arguments: dict[str, Any]) -> Engine:
    if args.model == "hf" and args.engine != "lm-eval":
        path = checkpoint.locate(arguments["pretrained"], arguments.get("revision"))
        model, tokenizer = load_causal_lm(path, arguments.get("dtype", "auto"), args.device)
        return PrefixEngine(model, tokenizer, int(args.batch_size))
    text = ",".join(f"{key}={value}" for key, value in arguments.items())
    return LMEvalEngine(args.model, text, args.batch_size, args.device)
