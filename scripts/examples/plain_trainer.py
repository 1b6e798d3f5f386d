"""Puts a plain Trainer's run on the board: the curve of a bundle, S@P90 and a record.

pip install -e ".[hf]"
python scripts/examples/plain_trainer.py --output_path run
factual-forgetting frontier run
factual-forgetting record run --output_path records --submitter NAME --heldout excluded
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from factual_forgetting import ForgettingCallback, checkpoint, load_bundle


def encoded(tokenizer: object, row: dict[str, str]) -> dict[str, list[int]]:
    """The bundle's text: question, space, answer, EOS; the answer alone is learned."""
    head = tokenizer(row["prompt"])["input_ids"]
    ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": [-100] * len(head) + ids[len(head) :]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output_path", type=Path, required=True)
    args = parser.parse_args()

    base, bundle = checkpoint.embedded("base"), load_bundle(checkpoint.embedded("bundle"))
    facts = [item.fact for name in ("known", "unknown") for item in bundle.splits[name]]
    rows = [
        {"prompt": f"Q: {fact.question}\nA:", "completion": f" {fact.answers[0]}"} for fact in facts
    ]
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = Dataset.from_list(rows).map(
        partial(encoded, tokenizer), remove_columns=["prompt", "completion"]
    )
    settings = TrainingArguments(
        output_dir=str(args.output_path),
        max_steps=args.steps,
        per_device_train_batch_size=32,
        learning_rate=3e-4,
        adam_epsilon=1e-3,
        logging_steps=10,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
    )
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        settings,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    watching = ForgettingCallback(trainer, bundle, every=20, limit=None, method="plain-trainer")
    trainer.add_callback(watching)
    trainer.train()
    trainer.save_model()  # beside its curve, for `record`


if __name__ == "__main__":
    main()
