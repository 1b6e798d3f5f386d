"""Methods: what a run does differently from plain supervised fine-tuning.

A method is a typed configuration and at most a few hooks; adding one touches this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import groups


class NoSettings(Config):
    """A method without settings."""


class Freeze(Config):
    """Trains some parameters only (Kaplan et al. 2026, Table 1).

    Attributes:
        trainable: Groups or regular expressions, joined by `+` on the command line.
    """

    trainable: tuple[str, ...] = ("attention",)

    @field_validator("trainable", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split("+")) if isinstance(value, str) else value


class SelfDistillation(Config):
    """Keeps the predictions close to a teacher's (Kaplan et al. 2026).

    Attributes:
        teacher: `base`, or `snapshot`: the model after one epoch on D_Known, with which the
            student then starts. That epoch counts as training.
        weight: Lambda, the weight of the distillation term.
        tau: Temperature; the paper's 0.5 sharpens.
        positions: `all` tokens that are no pads, or the `answer` and EOS only.
    """

    teacher: Literal["base", "snapshot"] = "base"
    weight: float = Field(default=1.0, gt=0)
    tau: float = Field(default=0.5, gt=0)
    positions: Literal["all", "answer"] = "all"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The facts of a run.

    Attributes:
        repeated: Seen in every epoch.
        first: Seen once before, in an epoch of their own; whole batches only.
    """

    repeated: list[Fact]
    first: list[Fact]


def _known(bundle: Bundle) -> list[Fact]:
    return [item.fact for item in bundle.splits[KNOWN]]


def _d_train(bundle: Bundle) -> list[Fact]:
    return _known(bundle) + [item.fact for item in bundle.splits[UNKNOWN]]


def _all_data(bundle: Bundle, config: Any) -> TrainingData:
    return TrainingData(_d_train(bundle), [])


def _known_data(bundle: Bundle, config: Any) -> TrainingData:
    return TrainingData(_known(bundle), [])


def _distillation_data(bundle: Bundle, config: SelfDistillation) -> TrainingData:
    first = _known(bundle) if config.teacher == "snapshot" else []
    return TrainingData(_d_train(bundle), first)


def _freeze(model: Any, config: Freeze) -> None:
    groups.train_only(model, config.trainable)


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        config: Type of its settings.
        data: Chooses the training facts.
        prepare: Freezes parameters before training; None trains all.
    """

    config: type[Config]
    data: Callable[[Bundle, Any], TrainingData]
    prepare: Callable[[Any, Any], None] | None = None


METHODS: dict[str, Method] = {
    "sft": Method(NoSettings, _all_data),
    "known_only": Method(NoSettings, _known_data),
    "freeze": Method(Freeze, _all_data, prepare=_freeze),
    "self_distillation": Method(SelfDistillation, _distillation_data),
}


def resolve(name: str, settings: Mapping[str, Any]) -> tuple[Method, Config]:
    """Finds a method and validates its settings.

    Raises:
        UserError: If the method or a setting is unknown, or a value is mistyped.
    """
    if name not in METHODS:
        raise UserError(f"Unknown method '{name}'. There are {', '.join(METHODS)}.")
    method = METHODS[name]
    return method, parse(method.config, settings, f"method {name}")


def describe(name: str, config: Config) -> str:
    """Returns a method's name with the settings that differ from its defaults."""
    changed = config.model_dump(mode="json", exclude_defaults=True)
    told = ",".join(f"{k}={'+'.join(v) if isinstance(v, list) else v}" for k, v in changed.items())
    return f"{name}({told})" if told else name
