"""`factual-forgetting classify`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from factual_forgetting import checkpoint, files
from factual_forgetting.config import parse
from factual_forgetting.engines.engine import Engine
from factual_forgetting.errors import UserError
from factual_forgetting.facts.command import add_source_arguments, facts_from_arguments
from factual_forgetting.facts.fact import Fact
from factual_forgetting.modelargs import parse_model_args, parse_pairs
from factual_forgetting.slick.labelling import (
    PARTS,
    QUOTAS,
    SOURCE,
    SlickConfig,
    read_labels,
    relation_table,
)
from factual_forgetting.slick.shards import Shard

_ENGINES = ("auto", "prefix", "lm-eval", "vllm")
_ALL, _ENDS = "all", "highly_known,unknown"
_QUOTA_SHARD = 128
_ADAPTERS = ("peft", "lora_local_path")
# Arguments of a model that say how a machine runs it, and may differ between shards.
_OF_THE_MACHINE = {
    "batch_size", "max_batch_size", "device", "device_map", "parallelize", "enforce_eager",
    "block_size", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens",
    "tensor_parallel_size", "data_parallel_size",
}  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Adds `classify`."""
    parser = subparsers.add_parser("classify", help="label facts by what a base knows (SLiCK)")
    add_source_arguments(parser)
    parser.add_argument("--output_path", type=Path, required=True, metavar="DIR")
    model = parser.add_argument_group("the base")
    model.add_argument("--model", default="hf", help="model class of lm-eval (hf)")
    model.add_argument("--model_args", default="pretrained=almanac", help="its arguments")
    model.add_argument("--engine", choices=_ENGINES, default="auto")
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
        help=f"stop when enough are found: {', '.join(QUOTAS)}; retires questions too",
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
    parser.set_defaults(run=run)


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


def run(args: argparse.Namespace) -> None:
    """Labels the facts and prints the categories by relation."""
    from factual_forgetting.engines.opening import open_engine
    from factual_forgetting.slick.classify import ask, merge, prepare

    if args.check_redraw and (args.plan or args.shard):
        raise UserError("--check-redraw needs finished labels. Give it with --merge.")
    arguments = parse_model_args(args.model_args)
    settings = _settings(args)
    facts, source = facts_from_arguments(args)
    base = _base(args.model, arguments)
    opening = (args.engine, args.model, arguments, args.batch_size, args.device)
    if args.plan:
        _print_plan(facts, settings, base, opening, args.output_path)
        return
    engine = None
    if args.merge:
        merge(prepare(facts, None, settings, base, args.output_path))
    elif args.ray:
        from factual_forgetting.slick.on_ray import classify_on_ray

        classify_on_ray(facts, opening, settings, base, args.output_path, args.ray)
    else:
        workers = _Workers(args.shard, args.device)
        engine = open_engine(*opening[:-1], workers.device)
        job = prepare(facts, engine.name, settings, base, args.output_path)
        ask(job, engine, workers.mine(job.shards))
        if args.shard:
            sys.stderr.write("This part is asked. When all are, run again with --merge.\n")
            return
        if not workers.merges():
            return
        merge(job)
    files.write_json(args.output_path / SOURCE, source)
    if args.check_redraw:
        engine = engine or open_engine(*opening)
        _check_redraw(facts, engine, args.output_path, args.check_redraw)
    table = relation_table(read_labels(args.output_path), args.min_highly_known)
    sys.stdout.write(tabulate(table, headers="keys", tablefmt="github", floatfmt=".3f") + "\n")


class _Workers:
    """Which part of the work falls to this process: by --shard, or by accelerate launch."""

    def __init__(self, share: tuple[int, int] | None, device: str | None) -> None:
        self._state: Any = None
        self._share, self.device = share or (0, 1), device
        if share is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState()
            self._share = self._state.process_index, self._state.num_processes
            self.device = device or str(self._state.device)

    def mine(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Returns this process's shards."""
        index, count = self._share
        return shards[index::count]

    def merges(self) -> bool:
        """Waits for the other processes; tells whether this one writes the labels."""
        if self._state is None:
            return True
        self._state.wait_for_everyone()
        return bool(self._state.is_main_process)


def _settings(args: argparse.Namespace) -> SlickConfig:
    quota = parse_pairs(args.quota)
    values = {
        "runs": args.runs,
        "shots": args.shots,
        "seed": args.exemplar_seed,
        "exemplars": args.exemplars,
        "retire": args.classes == _ENDS or bool(quota),
        "quota": quota,
        "samples": args.samples,
        "temperature": args.temperature,
        "top_k": args.top_k,
    }
    if quota:  # small blocks: the last one overshoots less
        values["shard_size"] = _QUOTA_SHARD
    return parse(SlickConfig, values, "classify")


def _base(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Describes the base; weights behind another backend can't be hashed."""
    if model in {"hf", "vllm"}:
        if "pretrained" not in arguments:
            raise UserError(f"--model {model} needs pretrained=... in --model_args.")
        adapter = next((arguments[key] for key in _ADAPTERS if key in arguments), None)
        base = checkpoint.identity(arguments["pretrained"], arguments.get("revision"), adapter)
        told = {*_ADAPTERS, *_OF_THE_MACHINE, "pretrained", "revision"}
        rest = {key: value for key, value in arguments.items() if key not in told}
        return {**base, "model_args": rest} if rest else base
    unknown = dict.fromkeys(("revision", "weights_sha256", "shape", "lineage"))
    name = arguments.get("pretrained") or arguments.get("model")
    return {"pretrained": name, **unknown, "model": model, "model_args": arguments}


def _print_plan(
    facts: Iterable[Fact],
    settings: SlickConfig,
    base: dict[str, Any],
    opening: tuple[Any, ...],
    output: Path,
) -> None:
    from factual_forgetting.engines.opening import open_engine
    from factual_forgetting.slick.classify import prepare
    from factual_forgetting.slick.planning import plan

    engine = open_engine(*opening)
    with tempfile.TemporaryDirectory() as elsewhere:
        begun = (output / PARTS).exists()
        where = output if begun else Path(elsewhere)
        told = plan(prepare(facts, engine.name, settings, base, where), engine)
    sys.stdout.write(files.dumps(told, indent=2) + "\n")


def _check_redraw(facts: Iterable[Fact], engine: Engine, output: Path, sample: int) -> None:
    from factual_forgetting.slick.redraw import check_redraw

    told = check_redraw(facts, engine, output, sample)
    rows = [{"category": one, **counts} for one, counts in told["confusion"].items()]
    sys.stdout.write(tabulate(rows, headers="keys", tablefmt="github"))
    sys.stdout.write(
        f"\n\nWith other exemplars {told['agreement']:.3f} of {sample} facts keep their "
        f"category; {told['swapped']} swap HighlyKnown and Unknown.\n\n"
    )
