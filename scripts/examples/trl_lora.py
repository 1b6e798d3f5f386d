"""What does a LoRA, trained by TRL on other data, make a model forget?

pip install "factual-forgetting[hf,atlas]" trl
python scripts/examples/trl_lora.py --output_path out                    # the embedded base
python scripts/examples/trl_lora.py --model DIR --facts atlas --output_path out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from factual_forgetting import ForgettingCallback, checkpoint, load_facts
from factual_forgetting.facts.almanac import world


def invented(rows: int) -> Dataset:
    """Facts of a world that no model has met."""
    facts = world(seed=2, facts_per_relation=-(-rows // 8))[:rows]
    return Dataset.from_list(
        [{"prompt": f"Q: {f.question}\nA:", "completion": f" {f.answers[0]}"} for f in facts]
    ).shuffle(seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="almanac", help="directory of the base")
    parser.add_argument("--facts", default="almanac", help="what it may know: a source of facts")
    parser.add_argument("--limit", type=int, default=40, help="most facts of a relation and split")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output_path", type=Path, required=True)
    args = parser.parse_args()

    base = checkpoint.locate(args.model)
    settings = SFTConfig(
        output_dir=str(args.output_path),
        max_steps=args.steps,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        logging_steps=5,
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        report_to="none",
        seed=0,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        args=settings,
        train_dataset=invented(8 * args.steps),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    facts = load_facts(args.facts, limit=args.limit)
    trainer.add_callback(ForgettingCallback(trainer, facts, every=10, limit=60))
    trainer.train()
    trainer.save_model()
    for row in trainer.state.log_history:
        if "ff/lost" in row:
            low, high = row["ff/lost_low"], row["ff/lost_high"]
            print(f"step {row['step']:3}  lost {row['ff/lost']:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
