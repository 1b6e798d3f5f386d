"""Pre-trains a small Llama on a stated part of any fact source, so that what it knows is known."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.config import Config
from factual_forgetting.engines.models import hasten_bf16
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.corpus import exposures, training_texts

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
EXPOSURES_FILE = "exposures.jsonl"
_PARTIAL = "pretrain.partial.json"
_WRITTEN = (*checkpoint.WRITTEN, EXPOSURES_FILE, "README.md")


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


def pretrain_base(
    facts: list[Fact], config: PretrainConfig, output: Path, counts: dict[str, int] | None = None
) -> None:
    """Pre-trains a base and writes checkpoint, exposure file and model card.

    Args:
        facts: Those of the world.
        config: The recipe.
        output: Directory to write.
        counts: How often each fact is told, by id; by default drawn from the recipe.

    Raises:
        UserError: If the output holds a checkpoint already, or the facts are none.
    """
    import torch

    if not facts:
        raise InputError("There are no facts to teach. Check --facts and --relations.")
    begun = output / _PARTIAL
    if (output / "config.json").exists() and not begun.exists():
        raise UserError(f"{output} holds a checkpoint already. Choose another --output_path.")
    outputs.require_folder(output, *_WRITTEN, begun=lambda _: begun.exists())
    torch.set_num_threads(config.threads)
    hasten_bf16()
    counts = counts or exposures(
        facts, config.seed, config.never, config.exposures_low, config.exposures_high
    )
    mark = files.sha256_json([config.model_dump(), [fact.row() for fact in facts], counts])
    with outputs.taken(output):
        _require_same(begun, mark)
        files.write_json(begun, mark)
        _make(facts, config, output, counts, mark)
        begun.unlink()


def _require_same(begun: Path, mark: str) -> None:
    """A killed start leaves its mark, and the same one begins anew."""
    if begun.exists() and files.read_json(begun) != mark:
        raise UserError(
            f"{begun.parent} was begun with other facts or another recipe. Choose another "
            "--output_path."
        )


def _make(
    facts: list[Fact], config: PretrainConfig, output: Path, counts: dict[str, int], mark: str
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(facts, config.vocab_size)
    blocks = _blocks(tokenizer, training_texts(facts, counts, config.seed), config.block_size)
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
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
        **{checkpoint.LINEAGE_KEY: mark},
    )
    model = LlamaForCausalLM(shape)
    loss = _train(model, blocks, config, output)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    told = [{"id": fact.id, "exposures": counts[fact.id]} for fact in facts]
    files.write_jsonl(output / EXPOSURES_FILE, told)
    tokens = len(blocks) * config.block_size
    card = _card(config, len(facts), counts, tokens, loss, model.num_parameters())
    files.write_atomic(output / "README.md", card.encode())


def build_tokenizer(facts: Sequence[Fact], vocab_size: int) -> Any:
    """Trains a byte-level BPE tokenizer in which told and untold facts are alike.

    Every fact is seen exactly once, whether or not the model will be told it, so that the
    number of tokens in a name says nothing about whether the name is known.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random("tokenizer")
    texts = (training_texts([fact], {fact.id: 1}, rng.randrange(2**32)) for fact in facts)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special, letters = [PAD, BOS, EOS], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(chain.from_iterable(texts), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
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

    from factual_forgetting.protocol.trainer import on_one_device

    class Bar(ProgressCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            """Keeps losses out of stdout, which is for data; the model card has the last."""

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
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    trainer = Trainer(model=model, args=on_one_device(arguments), train_dataset=rows)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1] if losses else "nan")


def _card(
    config: PretrainConfig, facts: int, counts: dict[str, int], tokens: int, loss: float, size: int
) -> str:
    told = [count for count in counts.values() if count]
    settings = "\n".join(f"- `{key}`: {value}" for key, value in config.model_dump().items())
    return f"""---
license: apache-2.0
library_name: transformers
tags: [factual-forgetting]
---
# A base model that knows a stated part of a stated world

Made by `factual-forgetting pretrain`. {size:,} parameters, Llama architecture.
{facts:,} facts exist; {len(told):,} were told, between {min(told, default=0)} and
{max(told, default=0)} times each ({sum(told):,} in all), and the others never.
`{EXPOSURES_FILE}` says how often, fact by fact. The text held {tokens:,}
tokens; the last logged training loss was {loss:.3f}.

It is made for measuring forgetting and for nothing else: it speaks of one invented world.

## Recipe
{settings}
"""
