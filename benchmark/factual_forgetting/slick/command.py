"""`factual-forgetting classify`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.config import parse
from factual_forgetting.engines.engine import Engine
from factual_forgetting.engines.opening import ENGINES, open_engine
from factual_forgetting.errors import InputError
from factual_forgetting.facts.command import add_source_arguments, facts_from_arguments
from factual_forgetting.facts.fact import Fact
from factual_forgetting.modelargs import parse_model_args, parse_pairs
from factual_forgetting.slick import labelling
from factual_forgetting.slick.classify import begin, check_redraw, classify
from factual_forgetting.slick.labelling import SlickConfig, read_labels, relation_table
from factual_forgetting.slick.on_ray import classify_on_ray
from factual_forgetting.slick.planning import estimate_labelling

_ALL, _ENDS = "all", "highly_known,unknown"
_QUOTA_SHARD = 128


def add_parser(subparsers: Any) -> None:
    """Adds `classify`."""
    parser = subparsers.add_parser("classify", help="label facts by what a base knows (SLiCK)")
    add_source_arguments(parser)
    parser.add_argument("--output_path", type=Path, required=True, metavar="DIR")
    model = parser.add_argument_group("the base")
    model.add_argument("--model", default="hf", help="model class of lm-eval (hf)")
    model.add_argument("--model_args", default="pretrained=almanac", help="its arguments")
    model.add_argument("--engine", choices=ENGINES, default="auto")
    model.add_argument("--batch_size", type=_batch, default="auto", help="a number or auto")
    model.add_argument("--device", default=None)
    slick = parser.add_argument_group("labels")
    slick.add_argument("--runs", type=int, default=20, help="few-shot configurations (20)")
    slick.add_argument("--shots", type=int, default=3, help="exemplars in each (3)")
    slick.add_argument("--exemplar_seed", type=int, default=0)
    slick.add_argument("--exemplars", choices=("relation", "question"), default="relation")
    slick.add_argument("--min_highly_known", type=float, default=0.3)
    slick.add_argument(
        "--classes", choices=(_ALL, _ENDS), default=_ALL,
        help=f"{_ENDS}: ask a question no more after one right and one wrong answer",
    )  # fmt: skip
    slick.add_argument(
        "--quota", default="", metavar="NAME=N,...",
        help="stop when a bundle of these sizes can be built: "
        f"{', '.join(labelling.QUOTAS)}; retires questions too",
    )  # fmt: skip
    slick.add_argument("--samples", type=int, default=0, help="random answers a run (0)")
    slick.add_argument("--temperature", type=float, default=0.5)
    slick.add_argument("--top_k", type=int, default=40)
    slick.add_argument(
        "--check-redraw", "--check_redraw", type=_count, default=0, metavar="N",
        help="label N facts again with other exemplars, and report the agreement",
    )  # fmt: skip
    work = parser.add_argument_group("the work").add_mutually_exclusive_group()
    work.add_argument("--plan", action="store_true", help="tell what it takes, and exit")
    work.add_argument(
        "--shard", type=_share, metavar="I/N", help="ask the I-th of N parts (from 1)"
    )
    work.add_argument("--merge", action="store_true", help="write the labels of asked parts")
    work.add_argument("--ray", type=_count, default=0, metavar="N", help="ask on N Ray workers")
    parser.set_defaults(run=_run, resumes=True)


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 1 to N")
    return int(found[1]) - 1, int(found[2])


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0")
    return int(text)


def _batch(text: str) -> str:
    if not re.fullmatch(r"auto(:\d+)?|0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is neither auto nor a number from 1")
    return text


def _run(args: argparse.Namespace) -> None:
    """Labels the facts and prints the categories by relation."""
    if args.check_redraw and (args.plan or args.shard):
        raise InputError("--check-redraw needs finished labels. Give it with --merge.")
    arguments = parse_model_args(args.model_args)
    settings = _settings(args)
    if not args.plan:
        outputs.require_folder(args.output_path)
    facts, source = facts_from_arguments(args)
    base = checkpoint.describe_base(args.model, arguments)
    opening = (args.engine, args.model, arguments, args.batch_size, args.device)
    engine = None
    if args.plan:
        _print_plan(facts, settings, base, open_engine(*opening), args.output_path)
        return
    if args.merge:
        with outputs.taken(args.output_path):
            begin(facts, None, settings, base, args.output_path).merge()
    elif args.ray:
        with outputs.taken(args.output_path):
            classify_on_ray(facts, opening, settings, base, args.output_path, args.ray)
    else:
        launched = None if args.shard else _launched()
        (index, count), device = args.shard or (0, 1), args.device
        if launched:
            index, count = launched.process_index, launched.num_processes
            device = device or str(launched.device)
        engine = open_engine(*opening[:-1], device)
        if not (launched or args.shard):
            classify(facts, engine, settings, base, args.output_path)
        else:
            with outputs.taken(args.output_path, shared=True):
                begun = begin(facts, engine.name, settings, base, args.output_path)
                begun.ask(engine, begun.shards[index::count])
            if launched is None:
                sys.stderr.write("This part is asked. When all are, run again with --merge.\n")
                return
            launched.wait_for_everyone()
            if not launched.is_main_process:
                return
            with outputs.taken(args.output_path):
                begun.merge()
    files.write_json(args.output_path / labelling.SOURCE_FILE, source)
    if args.check_redraw:
        _print_redraw(facts, engine or open_engine(*opening), args.output_path, args.check_redraw)
    table = relation_table(read_labels(args.output_path), args.min_highly_known)
    sys.stdout.write(tabulate(table, headers="keys", tablefmt="github", floatfmt=".3f") + "\n")


def _settings(args: argparse.Namespace) -> SlickConfig:
    quota = parse_pairs(args.quota)
    if "known" in quota:  # a bundle draws its facts for selection and replay from the same
        quota = {**labelling.SPARE, **quota}
    same = ("runs", "shots", "exemplars", "samples", "temperature", "top_k")
    values = {name: getattr(args, name) for name in same}
    values |= {"seed": args.exemplar_seed, "quota": quota, "retire": args.classes == _ENDS}
    if quota:  # small blocks: the last one overshoots less
        values |= {"retire": True, "shard_size": _QUOTA_SHARD}
        values["min_highly_known"] = args.min_highly_known
    return parse(SlickConfig, values, "classify")


def _launched() -> Any:
    """Returns the state of the processes that `accelerate launch` started; None without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return None
    from accelerate import PartialState

    return PartialState()


def _print_plan(
    facts: Iterable[Fact], settings: SlickConfig, base: dict[str, Any], engine: Engine, output: Path
) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        where = output if (output / labelling.PARTS).exists() else Path(elsewhere)
        told = estimate_labelling(begin(facts, engine.name, settings, base, where), engine)
    sys.stdout.write(files.dumps(told, indent=2) + "\n")


def _print_redraw(facts: Iterable[Fact], engine: Engine, output: Path, sample: int) -> None:
    told = check_redraw(facts, engine, output, sample)
    rows = [{"category": one, **counts} for one, counts in told["confusion"].items()]
    sys.stdout.write(
        tabulate(rows, headers="keys", tablefmt="github")
        + f"\n\nWith other exemplars {told['agreement']:.3f} of {told['sample']} facts keep their "
        f"category; {told['swapped']} swap HighlyKnown and Unknown.\n\n"
    )
