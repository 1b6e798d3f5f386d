"""What `finetune` takes, phase by phase: computed for any shape, and measured beside it.

    python scripts/cost_model.py                                     # the table, computed
    python scripts/cost_model.py --measure base=DIR method=l2        # one, measured on a CPU

Computed: bytes a device from the number of weights, the texts of a pass and FSDP's division; time
from operations (Kaplan et al. 2020: 2 a weight and token forward, 4 backward) at a stated rate.
Measured: resident memory at its highest within each phase of a few steps of real training (Linux),
beside what the same formulas give for that model, batch and length.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.protocol import train
from factual_forgetting.protocol.recipe import Execution, Protocol, load_protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import resolve

GB = 1e9
TEACHERS = ("self_distillation", "l2", "ewc")
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A model and a method on some devices; texts is how many one device reads at once."""

    config: Any
    method: str
    texts: int
    length: int
    devices: int = 1
    sharded: bool = False
    autocast: bool = True
    stored: int = 2  # bytes of a weight in the checkpoint's dtype

    @property
    def weights(self) -> int:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config).num_parameters()

    @property
    def activations(self) -> float:
        """Bytes kept for the backward pass, without gradient checkpointing."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", c.num_attention_heads)
        kv = c.hidden_size * heads // c.num_attention_heads
        wide = 2 if self.autocast else 4
        # Norms in fp32 keep two inputs each; then queries, attention, its input and output; keys
        # and values before and after rotation; gate, up, their product and the activation.
        layer = 16 * c.hidden_size + wide * (6 * c.hidden_size + 4 * kv + 4 * c.intermediate_size)
        return float(self.texts * self.length * layer * c.num_hidden_layers)

    @property
    def logits(self) -> float:
        """Bytes of the student's logits and their gradient, and of a teacher's logits."""
        held = 3 if self.method == "self_distillation" else 2
        wide = 2 if self.autocast else 4
        return float(self.texts * self.length * self.config.vocab_size * wide * held)

    def memory(self) -> dict[str, float]:
        """Returns the bytes that a device holds at most in each phase.

        A penalty's anchor is held in fp32; EWC's importances are as large again. Autocast keeps a
        bf16 copy of the weights from forward to backward. A point adds the checkpoint's copy; so
        does the start, where the base's predictions on D_Held are kept.
        """
        weights = self.weights
        parts = self.devices if self.sharded else 1
        anchors = {"self_distillation": 1, "l2": 1, "ewc": 2}.get(self.method, 0)
        kept = 4 * weights * (3 + anchors) / parts  # weights, two moments of AdamW, anchors
        passing = self.activations + self.logits + 2 * weights * self.autocast / parts
        step = kept + max(4 * weights / parts + passing, 8 * weights / parts)
        return {
            "start": (4 + self.stored) * weights,
            "step": step,
            "point": kept + self.stored * weights,
        }

    def seconds(self, sequences: int, rate: float) -> float:
        """Returns the time of training on so many sequences at a rate (operations a second)."""
        forwards = 6 + 2 * (self.method == "self_distillation")
        return forwards * self.weights * sequences * self.length / (rate * self.devices)


def computed(rate: float, length: int, sequences: int) -> list[dict[str, Any]]:
    rows = []
    for name, shape in SHAPES.items():
        for devices in (1, 8):
            for method in ("sft", *TEACHERS):
                sharded = devices > 1 and name.endswith("7b")
                if sharded and method in ("l2", "ewc"):
                    continue  # refused: they need whole weights
                config = AutoConfig.for_model("qwen2", **shape)
                job = Job(config, method, 16, length, devices, sharded)
                memory = {f"{key}, GB": value / GB for key, value in job.memory().items()}
                hours = job.seconds(sequences, rate) / 3600
                split = "FSDP" if sharded else "data parallel" if devices > 1 else ""
                rows.append(
                    {"model": name, "GPUs": devices, "split": split, "method": method, **memory,
                     "training, h": hours}
                )  # fmt: skip
    return rows


class Peak:
    """Resident memory at its highest within a phase, and its seconds."""

    def __init__(self) -> None:
        self.bytes: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.floor = self._now("VmRSS")

    @staticmethod
    def _now(name: str) -> int:
        told = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert told
        return int(told[1]) * 1024

    def phase(self, name: str, action: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far starts again
        started = time.perf_counter()
        found = action()
        self.seconds[name] = time.perf_counter() - started
        self.bytes[name] = float(self._now("VmHWM") - self.floor)
        return found


def measured(base: Path, method: str, texts: int, steps: int) -> list[dict[str, Any]]:
    """Returns a row for each phase of a few steps from a checkpoint, in fp32 on the CPU."""
    identity = checkpoint.identity(str(base))
    brief = load_protocol("standard-v3").model_copy(
        update={"name": "brief", "batch_size": texts, "precision": "fp32", "warmup_steps": 1,
                "checkpoint_dtype": "float32", "evaluate_every": 10**6, "evaluate_sample": texts,
                "kl_sample": 8, "max_new_tokens": 4}
    )  # fmt: skip
    bundle = load_bundle(locate_bundle(checkpoint.ALMANAC))
    run = Run(bundle, Protocol.model_validate(brief.model_dump()), method, resolve(method, {}), 0,
              identity)  # fmt: skip
    peak = Peak()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        trainer, curve, context = peak.phase(
            "start", lambda: train._assemble(run, base, out, Execution(), progress=False)
        )
        trainer.args.max_steps = steps
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [c for c in callbacks if type(c).__name__ != "CurveCallback"]
        peak.phase("step", trainer.train)
        held = run.bundle.splits["heldout"]
        run.bundle.splits["heldout"] = held[:texts]
        frozen = peak.phase("point", lambda: _point(trainer, curve, brief))
        del frozen
    lengths = [len(row["input_ids"]) for row in context.encode(context.facts)]
    job = Job(context.model.config, method, texts, round(statistics.mean(lengths)),
              autocast=False, stored=4)  # fmt: skip
    expected = job.memory()
    return [
        {"phase": name, "measured, GB": peak.bytes[name] / GB, "computed, GB": expected[name] / GB,
         "ratio": peak.bytes[name] / expected[name], "seconds": peak.seconds[name]}
        for name in ("start", "step", "point")
    ]  # fmt: skip


def _point(trainer: Any, curve: Any, protocol: Protocol) -> Any:
    frozen = trainer.checkpoint(protocol.stored)
    curve.evaluate(frozen, 1, None, final=False)
    return frozen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", metavar="KEY=VALUE", help="base, method, texts")
    parser.add_argument("--rate", type=float, default=3e14, help="operations a second (3e14)")
    parser.add_argument("--length", type=int, default=24, help="tokens of a text (24)")
    parser.add_argument("--sequences", type=int, default=480_000, help="16,000 facts, 30 passes")
    args = parser.parse_args()
    if args.measure:
        given = dict(pair.split("=", 1) for pair in args.measure)
        rows = measured(
            Path(given["base"]), given.get("method", "sft"), int(given.get("texts", 16)), 3
        )
        sys.stderr.write(f"torch {torch.__version__}, {os.cpu_count()} processors\n")
    else:
        rows = computed(args.rate, args.length, args.sequences)
    sys.stdout.write(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f") + "\n")


if __name__ == "__main__":
    main()
