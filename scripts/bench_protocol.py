"""What the protocol costs, as ratios from one run.

    python scripts/bench_protocol.py                        # the embedded base, on the CPU
    python scripts/bench_protocol.py --shape qwen2.5-1.5b   # random weights of that shape, on a GPU

Prints: SFT against the plain transformers Trainer on the same data; distillation against SFT (a
teacher's forward pass beside forward and backward: 4/3 is the floor); and the evaluation of the
curve against training: a point's facts against the facts trained on between two points, at what
one of each costs here, with 500 facts in D_Held for almanac-v1 and 2,000 for paper-v1. The arms
take turns, and the median of their turns counts; on a CPU it is processor time, which other
processes disturb least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Qwen2Config, Trainer
from transformers.trainer_utils import SaveStrategy

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, load_bundle, locate_bundle
from factual_forgetting.engines.models import quiet
from factual_forgetting.engines.prefix import ask_facts
from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.data import TrainingData, TrainingExamples, seen_order
from factual_forgetting.protocol.methods import METHODS
from factual_forgetting.protocol.recipe import Execution, load_protocol
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.protocol.trainer import ForgettingTrainer, arguments
from factual_forgetting.protocol.weights import as_checkpoint

HELD = {"almanac-v1": 500, "paper-v1": 2000}
QWEN_1_5B = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def clock() -> float:
    """Seconds: of the processor, or on a GPU of the wall after it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(action: Callable[[], Any]) -> float:
    started = clock()
    action()
    return clock() - started


class Arms:
    """The same model, data and order in each arm."""

    def __init__(self, base: Path, tokenizer: Any, protocol: Any, steps: int, work: Path) -> None:
        self.protocol, self.steps, self.work = protocol, steps, work
        bundle = load_bundle(locate_bundle("almanac"))
        facts = [item.fact for name in (KNOWN, UNKNOWN) for item in bundle.splits[name]]
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.context = Context(bundle, tokenizer, self.model, base, work, facts)
        order = seen_order(TrainingData(range(len(facts))), protocol, steps, 0)
        self.data = TrainingExamples(order, self.context.encode(facts), protocol.batch_size)

    def _arguments(self) -> Any:
        found = arguments(self.protocol, self.steps, 0, self.work, Execution())
        found.save_strategy = SaveStrategy.NO  # the disk isn't what is compared
        return found

    def plain(self) -> None:
        def only_known(rows: Any) -> dict[str, Any]:
            batch = self.context.collate(rows)
            return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

        given = {"args": self._arguments(), "train_dataset": self.data}
        trainer = Trainer(self.model, data_collator=only_known, **given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def ours(self, penalty: Any = None) -> None:
        given = {"args": self._arguments(), "train_dataset": self.data}
        given |= {"model": self.model, "data_collator": self.context.collate}
        ForgettingTrainer(self.protocol.batch_size, penalty, **given).train()

    def distilled(self) -> None:
        method = "self_distillation"
        self.ours(METHODS[method].penalty(self.context, resolve(method, {})))

    def evaluated(self) -> None:
        size = self.protocol.evaluate_sample
        facts = self.context.facts
        held = [item.fact for item in self.context.bundle.splits["heldout"]]
        asked = facts[:size] + facts[-size:] + held
        self.asked = len(asked)
        frozen = as_checkpoint(self.model, self.protocol.checkpoint_dtype)
        ask_facts(frozen, self.context.tokenizer, asked, self.protocol.max_new_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["almanac", "qwen2.5-1.5b"], default="almanac")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    quiet()
    base = checkpoint.locate("almanac")
    tokenizer = AutoTokenizer.from_pretrained(base)
    protocol = load_protocol("almanac-v1").model_copy(update={"evaluate_every": 10_000})
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if args.shape != "almanac":
            protocol = protocol.model_copy(update={"batch_size": 128})
            base = work / "base"
            AutoModelForCausalLM.from_config(Qwen2Config(**QWEN_1_5B)).save_pretrained(base)
        arms = Arms(base, tokenizer, protocol, args.steps, work)
        actions = {"plain": arms.plain, "sft": arms.ours, "distilled": arms.distilled}
        if args.shape == "almanac":
            actions["evaluated"] = arms.evaluated
        for warm_up in actions.values():
            warm_up()
        turns = [{name: seconds(act) for name, act in actions.items()} for _ in range(args.turns)]
    median = {name: statistics.median(turn[name] for turn in turns) for name in actions}
    rows = [
        ["SFT / plain Trainer", median["sft"] / median["plain"]],
        ["self-distillation / SFT", median["distilled"] / median["sft"]],
    ]
    if "evaluated" in median:
        trained = args.steps * protocol.batch_size
        a_fact = (median["evaluated"] / arms.asked) / (median["sft"] / trained)
        for name in ("almanac-v1", "paper-v1"):
            recipe = load_protocol(name)
            asked = 2 * recipe.evaluate_sample + HELD[name]
            share = a_fact * asked / (recipe.evaluate_every * recipe.batch_size)
            rows.append([f"evaluation / training, {name}", share])
    print(tabulate(rows, headers=["", "ratio"], tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
