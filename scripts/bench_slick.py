"""Measures the labelling engines side by side: same questions, same checkpoint, one thread.

    OMP_NUM_THREADS=1 python scripts/bench_slick.py [--base DIR] [--output_path FILE]
    python scripts/bench_slick.py --device cuda --runs 20 --output_path scripts/bench_slick_gpu.json

Two bases on a CPU: the embedded one, and the same function inflated to about 30 M parameters
(more layers and a wider feed-forward part that add nothing), where arithmetic dominates as it
does in larger models. On a GPU one, in the shape of Qwen2.5-1.5B but for its vocabulary. In fp32
on a CPU, as many have no instructions for bf16 and emulate it slowly; in bf16 on a GPU.
Every engine runs in a process of its own; CPU seconds are the comparable figure on a CPU, where
wall seconds depend on what else the machine does; on a GPU wall seconds are. The least number of
tokens that any method must compute is the number of distinct nodes in the token trie of all
prompts, plus the answer tokens before the one that decides the verdict.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.engines import prefix, prompts
from factual_forgetting.engines.engine import Answer, Engine, Group, Query, Sampling
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.environment import environment
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.classify import classify
from factual_forgetting.slick.configurations import draw_configurations
from factual_forgetting.slick.labelling import SlickConfig, load_labels
from factual_forgetting.slick.planning import peak_memory

RELATIONS = ("place_of_birth", "author")
MODES = (
    "lm-eval",
    "lm-eval, retiring",
    "prefix, whole answers",
    "prefix",
    "prefix, retiring",
)
GPU_MODES = ("lm-eval", "prefix")
HEAD_SIZE = 64
# Layers, width and width of the feed-forward part.
WIDE, QWEN_1_5B = (12, 256, 2816), (28, 1536, 8960)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default=checkpoint.ALMANAC)
    parser.add_argument("--facts", type=int, default=220, help="facts of each of two relations")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output_path", type=Path, default=Path("scripts/bench_slick.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args)))
        return
    base = checkpoint.locate(args.base)
    with tempfile.TemporaryDirectory() as directory:
        told = {
            "environment": environment(),
            "facts": args.facts * len(RELATIONS),
            "runs": args.runs,
            **(on_gpu if args.device != "cpu" else on_cpu)(base, Path(directory), args),
        }
    files.write_json(args.output_path, told)
    report(told)


def on_cpu(base: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    wide = inflate(base, work, WIDE)
    return {
        "narrow": compare(base, args, MODES),
        "wide": compare(wide, args, MODES),
        "embedded_world": ask_self(args, base, "all"),
    }


def on_gpu(base: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    return {"large": compare(inflate(base, work, QWEN_1_5B, "bfloat16"), args, GPU_MODES)}


def inflate(base: Path, output: Path, shape: tuple[int, int, int], dtype: str = "float32") -> Path:
    """Writes a larger Llama with the same logits: what is added changes nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    config = copy.deepcopy(small.config)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = shape
    config.num_attention_heads = config.num_key_value_heads = config.hidden_size // HEAD_SIZE
    config.layer_types = None
    # A norm divides by the mean square, which shrinks with every zero that is appended.
    share = small.config.hidden_size / config.hidden_size
    config.rms_norm_eps *= share
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        wide.model.embed_tokens.weight.zero_()
        for layer in wide.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        theirs = dict(small.named_parameters())
        for name, ours in wide.named_parameters():
            if name in theirs:
                corner = tuple(map(slice, theirs[name].shape))
                ours[corner] = theirs[name] * (share**0.5 if "norm" in name else 1)
    wide.to(getattr(torch, dtype)).save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)
    return output


class WholeAnswers(Engine):
    """An engine that stops no answer early."""

    def __init__(self, engine: Engine) -> None:
        self.name, self._engine = engine.name, engine

    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        return self._engine._generate(groups, most, False, sampling)


def compare(base: Path, args: argparse.Namespace, modes: Sequence[str]) -> dict[str, Any]:
    """Runs modes on one base."""
    found = {mode: ask_self(args, base, mode) for mode in modes}
    graded = [found[mode].pop("correct") for mode in modes]
    reference = found["lm-eval"]
    for mode, correct in zip(modes, graded, strict=True):
        found[mode]["verdicts_differing"] = differing(graded[0], correct)
        for clock in ("cpu", "wall"):
            told = found[mode][f"{clock}_seconds"]
            found[mode][f"{clock}_ratio"] = reference[f"{clock}_seconds"] / told
    return found


def differing(reference: dict[str, str], other: dict[str, str]) -> int:
    return sum(
        mark not in ("-", reference[fact][run])
        for fact, marks in other.items()
        for run, mark in enumerate(marks)
    )


def ask_self(args: argparse.Namespace, base: Path, mode: str) -> dict[str, Any]:
    """Measures one mode in a process of its own, so that peak memory is its own."""
    given = ["--facts", str(args.facts), "--runs", str(args.runs), "--device", args.device]
    command = [sys.executable, __file__, *given, "--one", str(base), mode]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(base: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    asked = world() if mode == "all" else [f for r in RELATIONS for f in some(r, args.facts)]
    settings = SlickConfig(runs=20 if mode == "all" else args.runs, retire="retiring" in mode)
    name = "lm-eval" if mode.startswith("lm-eval") else "prefix"
    dtype, batch = ("float32", "64") if args.device == "cpu" else ("bfloat16", "256")
    given = {"pretrained": base, "dtype": dtype}
    engine = open_engine(name, "hf", given, batch if name == "lm-eval" else "auto", args.device)
    warm_up(engine, asked[0])
    before = getattr(engine, "computed", 0)
    counted = count_answer_tokens()
    with tempfile.TemporaryDirectory() as directory:
        cpu, wall = time.process_time(), time.perf_counter()
        asking = WholeAnswers(engine) if "whole" in mode else engine
        classify(asked, asking, settings, {"pretrained": base}, Path(directory))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        labels = load_labels(Path(directory)).labels
        log = files.read_json(Path(directory) / "classify.log.json")
    told: dict[str, Any] = {
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(wall, 2),
        "queries": sum(row["queries"] for row in log),
        "peak_memory_mib": peak_memory() >> 20,
    }
    if mode != "all":
        told["correct"] = {label.fact.id: label.correct for label in labels}
    if mode in ("prefix", "all"):
        least = trie_nodes(asked, settings, engine) + counted[0]
        told |= {"tokens": getattr(engine, "computed", 0) - before, "least_tokens": least}
        told["tokens_over_least"] = round(told["tokens"] / least, 3)
    return told


def warm_up(engine: Engine, fact: Fact) -> None:
    """A GPU's libraries load with the first batch."""
    query = Query(prompts.question_prompt(fact.question), fact.accepted)
    engine.answer([Group("", [query])], SlickConfig().max_new_tokens)


def some(relation: str, number: int) -> Sequence[Fact]:
    return [fact for fact in world() if fact.relation == relation][:number]


def count_answer_tokens() -> list[int]:
    """Counts, from now on, the answer tokens that come before a deciding one."""
    counted, text = [0], prefix._Rules._text

    def counting(rules: Any, tokens: tuple[int, ...]) -> str:
        counted[0] += len(tokens) - 1
        return text(rules, tokens)

    prefix._Rules._text = counting  # type: ignore[method-assign]
    return counted


def trie_nodes(facts: Sequence[Fact], settings: SlickConfig, engine: Engine) -> int:
    """Distinct beginnings of all prompts, in tokens."""
    drawn = draw_configurations(facts, settings.runs, settings.shots, settings.seed)
    exemplars = set().union(*(configs.ids for configs in drawn.values()))
    nodes = 0
    for relation, configs in drawn.items():
        chosen = [f for f in facts if f.relation == relation and f.id not in exemplars]
        queries = [Query(prompts.question_prompt(f.question), f.accepted) for f in chosen]
        for shots in (*configs.labelling, configs.fresh, ()):
            group = Group(prompts.exemplar_prefix(shots), queries)
            head, tails = engine._encode(group)  # type: ignore[attr-defined]
            rows = sorted(head + tail for tail in tails)
            nodes += len(rows[0]) + sum(
                len(row) - shared(before, row) for before, row in pairwise(rows)
            )
    return nodes


def shared(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def report(told: dict[str, Any]) -> None:
    for base in ("narrow", "wide", "large"):
        for mode, row in told.get(base, {}).items():
            print(
                f"{base:7} {mode:21} {row['cpu_seconds']:8.1f} CPU s  x{row['cpu_ratio']:<5.2f}"
                f"{row['wall_seconds']:8.1f} s  x{row['wall_ratio']:<5.2f}"
                f"{row['queries']:7} queries  {row['peak_memory_mib']:5} MiB  "
                f"{row['verdicts_differing']} verdicts differ"
                + (f"  tokens/least {row['tokens_over_least']}" if "tokens" in row else "")
            )
    if whole := told.get("embedded_world"):
        print(
            f"the almanac's world: {whole['queries']} queries in {whole['cpu_seconds']} CPU s "
            f"and {whole['wall_seconds']} s, tokens/least {whole['tokens_over_least']}"
        )


if __name__ == "__main__":
    main()
