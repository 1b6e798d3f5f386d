"""What tests in several folders make: small models and labels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import checkpoint
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.slick.labelling import Category, Label, Labels

RELATIONS = ("country", "place_of_birth")


def make_model(architecture: str, vocab_size: int, seed: int = 0) -> Any:
    """A random model of two layers in the shape of a family."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids
        )
        return GPT2LMHeadModel(config)
    if architecture in OTHERS:
        config = other_config(architecture, vocab_size)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    families = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }
    config_type, model_type = families[architecture]
    return model_type(
        config_type(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            **ids,
        )
    )


# Other layouts of names, hybrids of attention and convolution, ALiBi, and a wrapper with a tower.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "falcon": {"attention_dropout": 0.1},
    "mpt": {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": 256},
    "lfm2": {
        "num_key_value_heads": 1, "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    },
    "gemma3": {
        "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip


def other_config(architecture: str, vocab_size: int) -> Any:
    from transformers import AutoConfig

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": vocab_size}
    sizes = {} if architecture == "mpt" else SIZES
    given = {**sizes, **OTHERS[architecture], **ids}
    if architecture != "gemma3":
        return AutoConfig.for_model(architecture, **given)
    return AutoConfig.for_model(
        architecture, text_config=given, vision_config=TOWER, mm_tokens_per_image=4
    )


def make_labels(facts: list[Fact], base: Path | None, seed: int = 0) -> Labels:
    """Labels drawn at random: half HighlyKnown, a third Unknown."""
    rng = random.Random(seed)
    labels = []
    for fact in facts:
        correct = rng.choice(["1" * 4, "1" * 4, "1" * 4, "0000", "0000", "0110"])
        outcome = {"zero_shot": "1" in correct, "fresh": "1" in correct}
        labels.append(Label(fact, correct, Category.of(correct), outcome, None))
    manifest = {
        "base": checkpoint.identity(str(base)) if base else {"pretrained": None},
        "engine": "none",
        "settings": {},
        "matcher": MATCHER_VERSION,
        "files": {},
    }
    return Labels(labels, dict.fromkeys(RELATIONS, facts[:3]), manifest)


def adapter_on(base: Path, output: Path) -> Any:
    """Saves a LoRA adapter with weights that change answers; returns the adapted model."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(model, settings)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(output)
    return adapted.eval()
