"""Protocols: named, versioned, fully pinned training recipes."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

from pydantic import Field

from factual_forgetting import files
from factual_forgetting.config import Config, load_yaml, parse
from factual_forgetting.errors import UserError


class Protocol(Config):
    """A training recipe. Every field changes the result, so every field has to be stated.

    Attributes:
        name: Name and version, for example `paper-v1`.
        learning_rate: AdamW's rate after warm-up; constant from then on.
        batch_size: Facts in an optimizer step, over all devices and accumulation.
        epochs: Passes over D_Known and D_Unk together. All methods train for the number of
            optimizer steps that this makes, however many facts they see.
        warmup_steps: Steps in which the rate rises from 0.
        weight_decay: AdamW's weight decay.
        adam_beta1: AdamW's first moment decay.
        adam_beta2: AdamW's second moment decay.
        adam_epsilon: AdamW's epsilon.
        max_grad_norm: Gradients are scaled down to this norm.
        dropout: Dropout of the model while it trains.
        precision: `bf16` computes in autocast over fp32 weights; `fp32` computes in fp32.
        checkpoint_dtype: What the checkpoint is saved in, and the curve evaluated in.
        attention: transformers' name of the attention implementation.
        evaluate_every: Steps between two points of the curve.
        evaluate_sample: Most facts of D_Known and of D_Unk at a point; all at the last.
        max_new_tokens: Most tokens of an answer.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    epochs: int = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    adam_beta1: float = Field(ge=0, lt=1)
    adam_beta2: float = Field(ge=0, lt=1)
    adam_epsilon: float = Field(gt=0)
    max_grad_norm: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    precision: Literal["bf16", "fp32"]
    checkpoint_dtype: Literal["bfloat16", "float32"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    evaluate_every: int = Field(gt=0)
    evaluate_sample: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)


def recipe_names() -> list[str]:
    """Returns the names of the protocols that ship with the package."""
    folder = package_files("factual_forgetting.protocol") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir())


def load_protocol(name: str) -> Protocol:
    """Loads a protocol by name, or from a YAML file.

    Raises:
        UserError: If there is no such protocol, or a key is unknown, missing or mistyped.
    """
    path = Path(name)
    if name in recipe_names():
        path = Path(str(package_files("factual_forgetting.protocol") / "recipes" / f"{name}.yaml"))
    elif path.suffix not in {".yaml", ".yml"}:
        raise UserError(
            f"Unknown protocol '{name}'. There are {', '.join(recipe_names())}; "
            "a file of your own must end in .yaml."
        )
    return parse(Protocol, load_yaml(path), str(name))


def recipe_hashes() -> dict[str, str]:
    """Returns the hash of every protocol that ships with the package, by name."""
    return {name: protocol_sha256(load_protocol(name)) for name in recipe_names()}


def protocol_sha256(protocol: Protocol) -> str:
    """Returns the hash of a protocol's content."""
    return files.sha256_json(protocol.model_dump(mode="json"))
