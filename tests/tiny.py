"""Tiny models that know some of the facts of a small invented world, made on the spot."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from factual_forgetting.engines import prompts
from factual_forgetting.facts.fact import Fact

FIRST = "Ana Bo Cleo Dag Eva Finn Gus Hal Ines Jo Kai Lea".split()
LAST = "Adler Brandt Cole Dietz Ek Falk Grün Holm".split()
PLACES = [
    "Rome", "Riga", "New York", "New Delhi", "St. Louis", "Zürich", "Washington D.C.", "Theben",
    "The Hague", "Ann Arbor", "Aachen", "Lille", "Castle C.", "Porto", "Graz", "St. Paul Jr.",
]  # fmt: skip
JOBS = ["actor", "baker", "nurse", "an artist", "poet", "clerk Jr.", "envoy, U.S.", "judge"]
QUESTIONS = {"born": ("Where was {} born?", PLACES), "work": ("What does {} do?", JOBS)}
SHAPES = ("llama", "qwen2", "gpt2", "mistral")
KINDS = ("bpe", "unigram")


def small_world(seed: int = 0) -> list[Fact]:
    rng = random.Random(seed)
    return [
        Fact.make(relation, name, question.format(name), (rng.choice(answers),))
        for relation, (question, answers) in QUESTIONS.items()
        for name in (f"{first} {last}" for first in FIRST for last in LAST)
    ]


def train_tokenizer(kind: str, texts: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        # The tail of a word may take the newline along, as in the tokenizers of Llama 3 and Qwen.
        split = pre_tokenizers.Split(
            Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            "isolated",
        )
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=500, special_tokens=special, unk_token="<unk>", max_piece_length=8
        )
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "unigram":
        bos = tokenizer.token_to_id("<bos>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", bos)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def config_of(shape: str, vocabulary: int) -> Any:
    from transformers import AutoConfig

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": vocabulary}
    if shape == "gpt2":
        return AutoConfig.for_model(
            shape, n_embd=64, n_layer=2, n_head=2, n_positions=512,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
        )  # fmt: skip
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        **({"sliding_window": 24} if shape == "mistral" else {}),
    }
    return AutoConfig.for_model(shape, **sizes, **ids)


def train(model: Any, tokenizer: Any, facts: list[Fact], steps: int) -> None:
    """Teaches two thirds of the facts, in documents of four questions."""
    import torch

    rng = random.Random(1)
    known = [fact for index, fact in enumerate(facts) if index % 3]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(steps):
        texts = [prompts.exemplar_prefix(rng.sample(known, 4)) for _ in range(24)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


WORLD = small_world()


@cache
def checkpoint_of(shape: str = "qwen2", kind: str = "bpe", steps: int = 250) -> Path:
    """Makes and keeps a checkpoint by shape of model and kind of tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = train_tokenizer(kind, [prompts.exemplar_prefix([fact]) for fact in WORLD])
    model = AutoModelForCausalLM.from_config(config_of(shape, len(tokenizer)))
    train(model, tokenizer, WORLD, steps)
    path = Path(tempfile.mkdtemp(prefix=f"{shape}-{kind}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
