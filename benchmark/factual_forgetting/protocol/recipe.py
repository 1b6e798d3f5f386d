"""Protocols: named, versioned, fully pinned training recipes, and how runs are computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from factual_forgetting import files
from factual_forgetting.config import Config, load_yaml, parse
from factual_forgetting.errors import InputError

_RECIPES = Path(__file__).parent / "recipes"


class Stored(NamedTuple):
    """How a checkpoint holds a model: the dtype's name, and whether it casts every buffer to it."""

    dtype: str
    all_buffers: bool = False


class Protocol(Config):
    """A training recipe. Every field changes the result, so every field has to be stated.

    A field that came later has the value by default that it always had.

    Attributes:
        name: Name and version, for example `paper-v1`.
        learning_rate: AdamW's rate after warm-up; constant from then on.
        learning_rates: The grid that a sweep tries, lowest first; empty for this one rate.
        strengths: Factors on a method's strength that a sweep tries; empty for none.
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
        teacher_precision: What a teacher's predictions and importances at an anchor are computed
            in: `fp32`, or as the `student`. Weights are pulled in fp32.
        checkpoint_dtype: What the checkpoint is saved in, and the curve evaluated in.
        curve_buffers: What the curve is evaluated with where a checkpoint holds no value (rotary
            frequencies): `cast` to `checkpoint_dtype`, or in fp32, as `loaded` checkpoints have it.
        attention: transformers' name of the attention implementation.
        evaluate_every: Steps between two points of the curve.
        evaluate_sample: Most facts of D_Known and of D_Unk at a point; all at the last.
        kl_sample: Most facts of D_Held on which the divergence from the base is measured.
        kl_prompt: What stands before their questions there: nothing (`zero_shot`), or the bundle's
            exemplars (`few_shot`), after which a base speaks the form that is trained.
        max_new_tokens: Most tokens of an answer.
        settings: What the recipe pins of each method, by its name: its settings in full, several
            for several arms. A method that isn't named isn't on the closed track. Where the
            recipe names none, every method is pinned to its defaults.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    learning_rate: PositiveFloat
    learning_rates: tuple[PositiveFloat, ...]
    strengths: tuple[PositiveFloat, ...]
    batch_size: PositiveInt
    epochs: PositiveInt
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    adam_beta1: float = Field(ge=0, lt=1)
    adam_beta2: float = Field(ge=0, lt=1)
    adam_epsilon: PositiveFloat
    max_grad_norm: PositiveFloat
    dropout: float = Field(ge=0, lt=1)
    precision: Literal["bf16", "fp32"]
    teacher_precision: Literal["fp32", "student"] = "fp32"
    checkpoint_dtype: Literal["bfloat16", "float32"]
    curve_buffers: Literal["cast", "loaded"] = "cast"
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    evaluate_every: PositiveInt
    evaluate_sample: PositiveInt
    kl_sample: PositiveInt
    kl_prompt: Literal["zero_shot", "few_shot"] = "zero_shot"
    max_new_tokens: PositiveInt
    settings: dict[str, tuple[dict[str, Any], ...]] = Field(default_factory=dict)

    @property
    def teacher_autocast(self) -> bool:
        """Whether teachers compute in bf16 autocast."""
        return self.precision == "bf16" and self.teacher_precision == "student"

    @property
    def stored(self) -> Stored:
        """How checkpoints hold the model, and the curve evaluates it."""
        return Stored(self.checkpoint_dtype, self.curve_buffers == "cast")

    @model_serializer(mode="wrap")
    def _without_later_fields(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what a recipe couldn't say before, at the value that it always had."""
        told: dict[str, Any] = serialise(self)
        always = {
            "teacher_precision": "fp32",
            "curve_buffers": "cast",
            "kl_prompt": "zero_shot",
            "settings": {},
        }
        return {key: value for key, value in told.items() if always.get(key) != value}

    @model_validator(mode="after")
    def _rate_on_grid(self) -> Protocol:
        if self.learning_rates and self.learning_rate not in self.learning_rates:
            raise ValueError("learning_rate is none of learning_rates")
        return self


class Execution(Config):
    """How a run is computed, not what: outside its identity, but told in `run.json`.

    Attributes:
        device_batch_size: Facts in one forward pass on a device; accumulation makes up the
            protocol's batch. The whole batch by default.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        report_to: transformers' names of trackers, joined by commas, or `none`.
        resume_every: Points of the curve from one state that a killed run goes on from to the
            next; it leaves no trace in a finished run.
    """

    device_batch_size: PositiveInt | None = None
    gradient_checkpointing: bool = False
    report_to: str = "none"
    resume_every: PositiveInt = 1


def world_size() -> int:
    """Returns the number of processes that torchrun or accelerate started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Returns which of these processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Tells whether this process writes the files."""
    return process_rank() == 0


def recipe_names() -> list[str]:
    """Returns the names of the protocols that ship with the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def load_protocol(name: str) -> Protocol:
    """Loads a protocol by name, or from a YAML file.

    Raises:
        UserError: If there is no such protocol, or a key is unknown, missing or mistyped.
    """
    path = _RECIPES / f"{name}.yaml" if name in recipe_names() else Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        raise InputError(
            f"Unknown protocol '{name}'. There are {', '.join(recipe_names())}; "
            "a file of your own must end in .yaml."
        )
    found = _load(path)
    require_own_name(found.name, protocol_sha256(found))
    return found


def _load(path: Path) -> Protocol:
    return parse(Protocol, load_yaml(path), path.stem)


def require_own_name(name: str, sha256: str) -> None:
    """Raises a UserError for what calls itself a recipe of the package and is another."""
    if name in recipe_names() and find_recipe(name, sha256) is None:
        raise InputError(f"It isn't the {name} of this package. Give a recipe a name of its own.")


def find_recipe(name: str, sha256: str) -> Protocol | None:
    """Returns the package's protocol of a name and hash, at the rate of its grid that gives it."""
    if name not in recipe_names():
        return None
    recipe = _load(_RECIPES / f"{name}.yaml")
    rates = (recipe.learning_rate, *recipe.learning_rates)
    at_rates = (recipe.model_copy(update={"learning_rate": rate}) for rate in rates)
    return next((found for found in at_rates if protocol_sha256(found) == sha256), None)


def protocol_sha256(protocol: Protocol) -> str:
    """Returns the hash of a protocol's content."""
    return files.sha256_json(protocol.model_dump(mode="json"))
