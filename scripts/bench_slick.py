"""Measures the labelling engines side by side: same questions, same checkpoint, one thread.

    OMP_NUM_THREADS=1 python scripts/bench_slick.py [--base DIR] [--output_path FILE]

Two bases: the embedded one, and the same function inflated to about 30 M parameters (more
layers and a wider feed-forward part that add nothing), where arithmetic dominates as it does
in larger models. All in fp32: many CPUs have no instructions for bf16, and emulate it slowly.
Every engine runs in a process of its own; CPU seconds are the comparable figure, wall seconds
depend on what else the machine does. The least number of tokens that any
method must compute is the number of distinct nodes in the token trie of all prompts, plus the
answer tokens before the one that decides the verdict.
"""

from __future__ import annotations

import argparse
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
from factual_forgetting.environment import environment
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick import prefix, prompts
from factual_forgetting.slick.answers import Answer, Engine, Group, Query
from factual_forgetting.slick.classify import classify
from factual_forgetting.slick.configurations import draw
from factual_forgetting.slick.engines import open_engine
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
WIDE_LAYERS, WIDE_FEED_FORWARD = 12, 2816


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default=checkpoint.ALMANAC)
    parser.add_argument("--facts", type=int, default=220, help="facts of each of two relations")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--output_path", type=Path, default=Path("scripts/bench_slick.json"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.facts, args.runs)))
        return
    base = checkpoint.locate(args.base)
    with tempfile.TemporaryDirectory() as directory:
        wide = inflate(base, Path(directory) / "wide")
        told = {
            "environment": environment(),
            "facts": args.facts * len(RELATIONS),
            "runs": args.runs,
            "narrow": compare(base, args),
            "wide": compare(wide, args),
            "embedded_world": ask_self(args, base, "all", "float32"),
        }
    files.write_json(args.output_path, told)
    report(told)


def inflate(base: Path, output: Path) -> Path:
    """Writes a Llama with the same logits and about 30 M parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    config = small.config
    layers, inner = config.num_hidden_layers, config.intermediate_size
    config.num_hidden_layers, config.intermediate_size = WIDE_LAYERS, WIDE_FEED_FORWARD
    config.layer_types = None
    torch.manual_seed(0)
    wide = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for layer in wide.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for ours, theirs in zip(wide.model.layers[:layers], small.model.layers, strict=True):
            ours.self_attn.load_state_dict(theirs.self_attn.state_dict())
            ours.input_layernorm.load_state_dict(theirs.input_layernorm.state_dict())
            norm = theirs.post_attention_layernorm.state_dict()
            ours.post_attention_layernorm.load_state_dict(norm)
            ours.mlp.gate_proj.weight[:inner] = theirs.mlp.gate_proj.weight
            ours.mlp.up_proj.weight[:inner] = theirs.mlp.up_proj.weight
            ours.mlp.down_proj.weight[:, :inner] = theirs.mlp.down_proj.weight
        wide.model.embed_tokens.load_state_dict(small.model.embed_tokens.state_dict())
        wide.model.norm.load_state_dict(small.model.norm.state_dict())
    wide.save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)
    return output


class WholeAnswers:
    """An engine that stops no answer early."""

    def __init__(self, engine: Engine) -> None:
        self.name, self._engine = engine.name, engine

    def answer(
        self, groups: Sequence[Group], max_new_tokens: int, *, verdict_only: bool = False
    ) -> list[list[Answer]]:
        return self._engine.answer(groups, max_new_tokens)


def compare(base: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Runs all modes in fp32 on one base."""
    found = {mode: ask_self(args, base, mode, "float32") for mode in MODES}
    graded = [found[mode].pop("correct") for mode in MODES]
    reference = found["lm-eval"]
    for mode, correct in zip(MODES, graded, strict=True):
        found[mode]["verdicts_differing"] = differing(graded[0], correct)
        found[mode]["cpu_ratio"] = reference["cpu_seconds"] / found[mode]["cpu_seconds"]
    return found


def differing(reference: dict[str, str], other: dict[str, str]) -> int:
    return sum(
        mark not in ("-", reference[fact][run])
        for fact, marks in other.items()
        for run, mark in enumerate(marks)
    )


def ask_self(args: argparse.Namespace, base: Path, mode: str, dtype: str) -> dict[str, Any]:
    """Measures one mode in a process of its own, so that peak memory is its own."""
    sizes = ["--facts", str(args.facts), "--runs", str(args.runs)]
    command = [sys.executable, __file__, *sizes, "--one", str(base), mode, dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(base: str, mode: str, dtype: str, facts: int, runs: int) -> dict[str, Any]:
    asked = world() if mode == "all" else [f for r in RELATIONS for f in some(r, facts)]
    settings = SlickConfig(runs=20 if mode == "all" else runs, retire="retiring" in mode)
    name = "lm-eval" if mode.startswith("lm-eval") else "prefix"
    batch = "64" if name == "lm-eval" else "auto"
    engine = open_engine(name, "hf", {"pretrained": base, "dtype": dtype}, batch, "cpu")
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
        told |= {"tokens": engine.computed, "least_tokens": least}  # type: ignore[attr-defined]
        told["tokens_over_least"] = round(told["tokens"] / least, 3)
    return told


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
    drawn = draw(facts, settings.runs, settings.shots, settings.seed)
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
    for base in ("narrow", "wide"):
        for mode, row in told[base].items():
            print(
                f"{base:7} {mode:21} {row['cpu_seconds']:8.1f} CPU s  x{row['cpu_ratio']:<5.2f}"
                f"{row['queries']:7} queries  {row['peak_memory_mib']:5} MiB  "
                f"{row['verdicts_differing']} verdicts differ"
                + (f"  tokens/least {row['tokens_over_least']}" if "tokens" in row else "")
            )
    whole = told["embedded_world"]
    print(
        f"the embedded world, 20 runs: {whole['queries']} queries in {whole['cpu_seconds']} CPU s, "
        f"tokens/least {whole['tokens_over_least']}"
    )


if __name__ == "__main__":
    main()
