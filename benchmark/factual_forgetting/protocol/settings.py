"""The settings of every method, typed; what computes with them is in `methods`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from factual_forgetting.config import Config, parse
from factual_forgetting.errors import InputError

# What training is held to: the base; the model after one epoch on D_Known, with which the run
# then starts; or the model after the first epoch of the run itself. Both epochs count as steps.
Anchor = Literal["base", "snapshot", "same_run"]


class MethodSettings(Config):
    """Settings of a method; this class itself is a method's that has none.

    Attributes:
        strength: The setting that a grid of strengths multiplies, if there is one.
        held_to: The setting that says what training is held to, if there is one.
        chooses: Whether the method ends at a point that it chooses on its curve.
    """

    strength: ClassVar[str | None] = None
    held_to: ClassVar[str | None] = None
    chooses: ClassVar[bool] = False

    @property
    def anchor(self) -> Anchor:
        """What training is held to; the base where a method says nothing else."""
        return getattr(self, self.held_to) if self.held_to else "base"


class Freeze(MethodSettings):
    """Trains some parameters only (Kaplan et al. 2026, Table 1; gate_up: Zhu et al. 2025).

    Attributes:
        trainable: Groups, layer ranges or regular expressions as `groups.select` takes them,
            joined by `+` on the command line.
    """

    trainable: tuple[str, ...] = ("attention",)

    @field_validator("trainable", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split("+")) if isinstance(value, str) else value


class SelfDistillation(MethodSettings):
    """Keeps the predictions close to a teacher's (Kaplan et al. 2026, arXiv 2604.15574).

    Attributes:
        teacher: `base`, `snapshot` (after an epoch on D_Known) or `same_run` (after the first
            epoch of the run itself).
        weight: Lambda, the weight of the distillation term.
        tau: Temperature; the paper's 0.5 sharpens.
        direction: `forward` is KL(teacher || student), the paper's; `reverse` the other.
        positions: `all` tokens that are no pads, or the `answer` and EOS only.
    """

    strength, held_to = "weight", "teacher"
    teacher: Anchor = "base"
    weight: PositiveFloat = 1.0
    tau: PositiveFloat = 0.5
    direction: Literal["forward", "reverse"] = "forward"
    positions: Literal["all", "answer"] = "all"


class FreezeSelfDistillation(Freeze, SelfDistillation):
    """Trains some parameters only, and keeps the predictions close to a teacher's."""


class L2(MethodSettings):
    """Pulls the weights to where they were (L2-SP, Li et al. 2018, arXiv 1802.01483).

    The control of Kaplan et al. 2026: the pull is in weights, not in predictions.

    Attributes:
        to: What the weights are pulled to.
        weight: Lambda in `lambda / 2 * |theta - theta_0|^2`.
    """

    strength, held_to = "weight", "to"
    to: Anchor = "base"
    weight: PositiveFloat = 0.03


class EWC(MethodSettings):
    """Pulls each weight to the base by its importance (Kirkpatrick et al. 2017, 1612.00796).

    Importance is the diagonal of the empirical Fisher information on the replay facts, in the
    form of their training text: the mean over facts of squared gradients at the base.

    Attributes:
        weight: Lambda in `lambda / 2 * sum F (theta - theta_0)^2`.
    """

    strength = "weight"
    weight: PositiveFloat = 100.0


class ContextDistillation(MethodSettings):
    """Adds a teacher that has the fact in its prompt (Snell et al. 2022, arXiv 2209.15189).

    The base reads the fact as an answered exemplar before the question; the student, without
    it, is drawn to what the base then predicts at the tokens of the answer. EOS, of which the
    base knows nothing here, is left to the cross-entropy.

    Attributes:
        weight: Weight of the term beside the cross-entropy.
        tau: Temperature.
    """

    strength = "weight"
    weight: PositiveFloat = 1.0
    tau: PositiveFloat = 1.0


class FewShotDistillation(MethodSettings):
    """Adds a teacher that speaks the form: the base, asked few-shot.

    For bases that answer the bare question in sentences. As `ContextDistillation`, but the base
    reads the bundle's exemplars of the relation, and so tells what it knew, not the fact.

    Attributes:
        weight: Weight of the term beside the cross-entropy.
        tau: Temperature; that of Kaplan et al. 2026 sharpens.
    """

    strength = "weight"
    weight: PositiveFloat = 1.0
    tau: PositiveFloat = 0.5


class Replay(MethodSettings):
    """Mixes in HighlyKnown facts (rehearsal; Rolnick et al. 2019, arXiv 1811.11682).

    Attributes:
        ratio: Facts of the replay split, repeated if need be, for each of D_train in an epoch.
    """

    strength = "ratio"
    ratio: PositiveFloat = 0.5


class KnownLast(MethodSettings):
    """Ends with known facts (KnownPatch, arXiv 2511.02626).

    Attributes:
        epochs: Passes over D_Known at the end; their steps count, in whole batches.
    """

    epochs: PositiveInt = 1


class Abstention(MethodSettings):
    """Teaches to abstain from Unknown facts (Gekhman et al. 2024, arXiv 2405.05904).

    Attributes:
        answer: What every fact of D_Unk is answered with in training.
    """

    answer: str = Field(default="I don't know", min_length=1)


class WiseFT(MethodSettings):
    """Averages the weights with the base's (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

    The curve is the line from the base (alpha 0) to the trained model (alpha 1). The checkpoint
    is the one on it with the highest mean of stability on validation and plasticity.

    Attributes:
        points: Points on the line after the base.
    """

    chooses = True
    points: int = Field(default=10, gt=1)


class EarlyStop(MethodSettings):
    """Ends at the point with the highest mean of stability on validation and plasticity."""

    chooses = True


class Lora(MethodSettings):
    """Trains low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685), merged for scoring.

    Attributes:
        rank: Rank of each update.
        alpha: Its scale is `alpha / rank`.
        target: `all-linear` layers, or names of modules joined by `+`.
    """

    strength = "alpha"
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    target: str = "all-linear"


class LoraSelfDistillation(Lora, SelfDistillation):
    """LoRA and distillation from the base, which is the student with the adapter off."""

    strength = "weight"
    teacher: Literal["base"] = "base"


SETTINGS: dict[str, type[MethodSettings]] = {
    "sft": MethodSettings,
    "known_only": MethodSettings,
    "freeze": Freeze,
    "self_distillation": SelfDistillation,
    "freeze_self_distillation": FreezeSelfDistillation,
    "l2": L2,
    "ewc": EWC,
    "lora": Lora,
    "lora_self_distillation": LoraSelfDistillation,
    "replay": Replay,
    "known_last": KnownLast,
    "idk": Abstention,
    "context_distillation": ContextDistillation,
    "few_shot_distillation": FewShotDistillation,
    "wise_ft": WiseFT,
    "early_stop": EarlyStop,
}


def resolve(name: str, settings: Mapping[str, Any]) -> MethodSettings:
    """Validates a method's settings.

    Raises:
        UserError: If the method or a setting is unknown, or a value is mistyped.
    """
    if name not in SETTINGS:
        raise InputError(f"Unknown method '{name}'. There are {', '.join(SETTINGS)}.")
    return parse(SETTINGS[name], settings, f"method {name}")


def method_label(name: str, config: Config) -> str:
    """Returns a method's name with its first setting and those that aren't the default.

    The first names the arm: what trains, who teaches.
    """
    told = config.model_dump(mode="json")
    changed = config.model_dump(mode="json", exclude_defaults=True)
    shown = [key for index, key in enumerate(told) if not index or key in changed]
    texts = (f"{k}={'+'.join(told[k]) if isinstance(told[k], list) else told[k]}" for k in shown)
    return f"{name}({','.join(texts)})" if shown else name
