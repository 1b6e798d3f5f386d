"""Small models and bundles, made here."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import checkpoint
from factual_forgetting.bundle.build import BundleConfig, build
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.lab.pretrain import build_tokenizer
from factual_forgetting.protocol.config import Protocol, load_protocol
from factual_forgetting.protocol.methods import NoSettings
from factual_forgetting.protocol.train import Run, finetune
from factual_forgetting.scoring.score import score
from factual_forgetting.slick.labelling import Label, Labels, category

RELATIONS = ("country", "place_of_birth")


@pytest.fixture(scope="session")
def facts() -> list[Fact]:
    return [fact for fact in world(facts_per_relation=120) if fact.relation in RELATIONS]


@pytest.fixture(scope="session")
def tokenizer(facts: list[Fact]) -> Any:
    return build_tokenizer(facts, 600)


def make_model(architecture: str, vocab_size: int, seed: int = 0) -> Any:
    """A random model of two layers in the shape of a family."""
    import torch
    from transformers import (
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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random Llama with its tokenizer, saved as a checkpoint."""
    path = tmp_path_factory.mktemp("base")
    make_model("llama", len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_labels(facts: list[Fact], base: Path | None, seed: int = 0) -> Labels:
    """Labels drawn at random: half HighlyKnown, a third Unknown."""
    rng = random.Random(seed)
    labels = []
    for fact in facts:
        correct = rng.choice(["1" * 4, "1" * 4, "1" * 4, "0000", "0000", "0110"])
        outcome = {"zero_shot": "1" in correct, "fresh": "1" in correct}
        labels.append(Label(fact, correct, category(correct), outcome, None))
    manifest = {
        "base": checkpoint.identity(str(base)) if base else {"pretrained": None},
        "engine": "none",
        "settings": {},
        "matcher": MATCHER_VERSION,
        "files": {},
    }
    return Labels(labels, dict.fromkeys(RELATIONS, facts[:3]), manifest)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, facts: list[Fact], base: Path) -> Bundle:
    sizes = BundleConfig(known=24, unknown=24, heldout=16, validation=4, replay=4)
    return build(make_labels(facts, base), sizes, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="session")
def protocol() -> Protocol:
    """almanac-v1 cut short, in fp32."""
    return load_protocol("almanac-v1").model_copy(
        update={
            "name": "test",
            "epochs": 40,
            "batch_size": 8,
            "evaluate_every": 30,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "checkpoint_dtype": "float32",
        }
    )


@pytest.fixture(scope="session")
def sft(bundle: Bundle, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("runs") / "sft"
    finetune(Run(bundle, protocol, "sft", NoSettings(), seed=0), output, progress=False)
    return output


@pytest.fixture(scope="session")
def results(bundle: Bundle, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lm-eval says of that run's checkpoint."""
    output = tmp_path_factory.mktemp("results")
    return score(bundle, "hf", f"pretrained={sft},dtype=float32", output, batch_size="16")
