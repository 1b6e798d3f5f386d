"""Pre-trains a small Llama on a stated part of any fact source, so that what it knows is known."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.config import Config
from factual_forgetting.engines.bf16 import hasten_bf16
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab import corpus

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
EXPOSURES_FILE = "exposures.jsonl"


class PretrainConfig(Config):
    """Everything that decides the weights of a pre-trained base.

    Attributes:
        seed: Decides exposures, text, initial weights and order.
        never: Share of facts that are never told.
        exposures_low: Smallest number of times that a told fact is told.
        exposures_high: Largest; between the two the number is log-uniform.
        vocab_size: Size of the byte-level BPE vocabulary, special tokens included.
        hidden_size: Width of the model.
        intermediate_size: Width of its feed-forward layers.
        num_hidden_layers: Depth.
        num_attention_heads: Query heads a layer.
        num_key_value_heads: Key and value heads a layer.
        block_size: Tokens in a training sequence.
        batch_size: Sequences in a step.
        learning_rate: Peak of the cosine schedule.
        warmup_ratio: Share of the steps in which the rate rises.
        weight_decay: AdamW's weight decay.
        epochs: Passes over the text.
        bf16: Whether to compute in bf16 autocast over fp32 weights.
        threads: CPU threads; part of the identity because sums depend on it.
    """

    seed: int
    never: float
    exposures_low: int
    exposures_high: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    block_size: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    weight_decay: float
    epochs: int
    bf16: bool
    threads: int


def pretrain(
    facts: Sequence[Fact],
    config: PretrainConfig,
    output: Path,
    counts: dict[str, int] | None = None,
) -> None:
    """Pre-trains a base and writes checkpoint, exposure file and model card.

    Args:
        facts: The facts of the world.
        config: The recipe.
        output: Directory to write; must not hold a checkpoint already.
        counts: How often each fact is told, by id; by default drawn from the recipe.

    Raises:
        UserError: If the output exists already, or the facts are none.
    """
    import torch
    from transformers import LlamaForCausalLM

    if (output / "config.json").exists():
        raise UserError(f"{output} holds a checkpoint already. Choose another --output_path.")
    if not facts:
        raise UserError("There are no facts to teach. Check --facts and --relations.")
    torch.set_num_threads(config.threads)
    hasten_bf16()
    counts = counts or corpus.exposures(
        facts, config.seed, config.never, config.exposures_low, config.exposures_high
    )
    tokenizer = build_tokenizer(facts, config.vocab_size)
    blocks = _blocks(tokenizer, corpus.documents(facts, counts, config.seed), config.block_size)
    torch.manual_seed(config.seed)
    settings = _model_config(config, len(tokenizer))
    mark = files.sha256_json([config.model_dump(), [fact.row() for fact in facts], counts])
    setattr(settings, checkpoint.LINEAGE_KEY, mark)
    model = LlamaForCausalLM(settings)
    loss = _train(model, blocks, config, output)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    files.write_jsonl(
        output / EXPOSURES_FILE, [{"id": f.id, "exposures": counts[f.id]} for f in facts]
    )
    card = _card(config, facts, counts, len(blocks), loss, model.num_parameters())
    files.write_atomic(output / "README.md", card.encode())


def build_tokenizer(facts: Sequence[Fact], vocab_size: int) -> Any:
    """Trains a byte-level BPE tokenizer in which told and untold facts are alike.

    Every fact is seen exactly once, whether or not the model will be told it, so that the
    number of tokens in a name says nothing about whether the name is known.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random("tokenizer")
    text = [
        doc
        for fact in facts
        for doc in corpus.documents([fact], {fact.id: 1}, rng.randrange(2**32))
    ]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def _model_config(config: PretrainConfig, vocab_size: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _blocks(tokenizer: Any, documents: Iterable[str], size: int) -> list[list[int]]:
    """Packs documents, each between BOS and EOS, into blocks of equal length."""
    stream: list[int] = []
    for ids in tokenizer(list(documents))["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    return [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]


def _train(model: Any, blocks: list[list[int]], config: PretrainConfig, output: Path) -> float:
    import torch
    from transformers import ProgressCallback, Trainer, TrainingArguments

    class Bar(ProgressCallback):
        """A progress bar that leaves stdout, which is for data, alone."""

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            """Keeps losses out of the output; the model card has the last."""

    def collate(rows: list[list[int]]) -> dict[str, Any]:
        ids = torch.tensor(rows)
        return {"input_ids": ids, "labels": ids}

    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch_fused",
        seed=config.seed,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=50,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks, data_collator=collate)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else float("nan")


def _card(
    config: PretrainConfig,
    facts: Sequence[Fact],
    counts: dict[str, int],
    blocks: int,
    loss: float,
    parameters: int,
) -> str:
    told = sorted(count for count in counts.values() if count)
    settings = "\n".join(f"- `{key}`: {value}" for key, value in config.model_dump().items())
    return f"""---
license: apache-2.0
library_name: transformers
tags: [factual-forgetting]
---
# A base model that knows a stated part of a stated world

Made by `factual-forgetting pretrain`. {parameters:,} parameters, Llama architecture.
{len(facts):,} facts exist; {len(told):,} were told, between {told[0] if told else 0} and
{told[-1] if told else 0} times each ({sum(told):,} in all), and the others never.
`{EXPOSURES_FILE}` says how often, fact by fact. The text held {blocks * config.block_size:,}
tokens; the last logged training loss was {loss:.3f}.

It is made for measuring forgetting and for nothing else: it speaks of one invented world.

## Recipe
{settings}
"""
