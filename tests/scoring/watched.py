"""A plain Trainer with the callback; as a program, what each of several processes does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from factual_forgetting import ForgettingCallback
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle, load_bundle
from factual_forgetting.protocol.data import collate, encode


def make_trainer(
    base: Path, bundle: Bundle, output: Path, model: Any = None, **settings: Any
) -> Trainer:
    """Trains on a bundle's D_Known and D_Unk, a few steps."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    given = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
    given |= {"logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    given |= {"use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
    facts = [item.fact for name in (KNOWN, UNKNOWN) for item in bundle.splits[name]]
    rows = encode(facts, tokenizer, 256)
    return Trainer(
        model or AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        TrainingArguments(output_dir=str(output), **{**given, **settings}),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        processing_class=tokenizer,
    )


def watched(base: Path, bundle: Bundle, output: Path, **options: Any) -> Trainer:
    """Trains with the callback at every second step."""
    trainer = make_trainer(base, bundle, output, **options)
    trainer.add_callback(ForgettingCallback(trainer, bundle, every=2, limit=4))
    trainer.train()
    return trainer


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP"):
        import fsdp_cpu  # noqa: F401, takes processes on the CPU for GPUs
    given = [Path(argument) for argument in sys.argv[1:4]]
    watched(given[0], load_bundle(given[1]), given[2], per_device_train_batch_size=4)
    if distributed.is_initialized():
        distributed.destroy_process_group()
        # torch's threads now and then abort a process of several that exits in order.
        sys.stdout.flush()
        os._exit(0)
