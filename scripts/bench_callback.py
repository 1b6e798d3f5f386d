"""What the callback costs, beside a training step, on the embedded base.

    python scripts/bench_callback.py                  # [--facts N] [--steps N] [--device cuda]

A plain Trainer trains with it and without it, in a process each. Prints processor seconds (on a
GPU seconds of the wall) of a step and of a point, their ratio, and the most memory of both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from factual_forgetting import ForgettingCallback, checkpoint, load_bundle
from factual_forgetting.protocol.data import collate, encode


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Timed(ForgettingCallback):
    """Takes the time of every point."""

    def _evaluate(self, *given: Any, **options: Any) -> None:
        started = clock()
        super()._evaluate(*given, **options)
        points.append(clock() - started)


class Timing(Trainer):
    """Takes the time of every forward and backward pass and of the optimizer's step."""

    def _run_epoch(self, *given: Any, **options: Any) -> Any:
        started, before = clock(), len(points)
        found = super()._run_epoch(*given, **options)
        steps.append((clock() - started - sum(points[before:])) / self.args.max_steps)
        return found


points: list[float] = []
steps: list[float] = []


def train(asked: int, count: int, device: str) -> dict[str, float]:
    """Trains; asks `asked` facts at every eighth step, none for 0."""
    base, bundle = checkpoint.embedded("base"), load_bundle(checkpoint.embedded("bundle"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    facts = [item.fact for name in ("known", "unknown") for item in bundle.splits[name]]
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            output_dir=scratch, max_steps=count, per_device_train_batch_size=32,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=device == "cpu",
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = Timing(
            AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
            settings,
            train_dataset=encode(facts, tokenizer, 256),
            data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
            processing_class=tokenizer,
        )
        if asked:
            limit = -(-asked // 3)  # of each of three splits
            trainer.add_callback(Timed(trainer, bundle, every=8, limit=limit))
        trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else resident()
    sampled = points[:-1]  # the last is of all facts
    return {
        "step": steps[0],
        "point": statistics.median(sampled) if sampled else 0.0,
        "peak": peak,
    }


def resident() -> float:
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024


def apart(*given: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, *given).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=198)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    without, watched = (apart(asked, args.steps, args.device) for asked in (0, args.facts))
    rows = [
        ["seconds of a step", without["step"], watched["step"], watched["step"] / without["step"]],
        [f"seconds of a point ({args.facts} facts)", None, watched["point"], None],
        ["a point / a step", None, watched["point"] / watched["step"], None],
        ["most memory, MiB", without["peak"], watched["peak"], watched["peak"] / without["peak"]],
    ]
    headers = ["", "without", "with", "ratio"]
    print(tabulate(rows, headers=headers, tablefmt="github", floatfmt=".3g", missingval=""))


if __name__ == "__main__":
    main()
