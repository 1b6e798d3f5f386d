"""Methods: what a run does differently from plain supervised fine-tuning.

A method is a typed configuration and at most four hooks: which parameters train, what data it
sees, what is added to the loss, and what happens after training. Adding one is an entry here;
what computes with tensors is in `penalties` and `finishing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from factual_forgetting.bundle.manifest import KNOWN, REPLAY, UNKNOWN, VALIDATION, Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import groups

if TYPE_CHECKING:
    from factual_forgetting.protocol.curve import Curve
    from factual_forgetting.protocol.penalties import Penalty

# What training is held to: the base; the model after one epoch on D_Known, with which the run
# then starts; or the model after the first epoch of the run itself. Both epochs count as steps.
Reference = Literal["base", "snapshot", "same_run"]


class NoSettings(Config):
    """A method without settings."""


class Freeze(Config):
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


class SelfDistillation(Config):
    """Keeps the predictions close to a teacher's (Kaplan et al. 2026, arXiv 2604.15574).

    Attributes:
        teacher: `base`, `snapshot` (after an epoch on D_Known) or `same_run` (after the first
            epoch of the run itself).
        weight: Lambda, the weight of the distillation term.
        tau: Temperature; the paper's 0.5 sharpens.
        direction: `forward` is KL(teacher || student), the paper's; `reverse` the other.
        positions: `all` tokens that are no pads, or the `answer` and EOS only.
    """

    teacher: Reference = "base"
    weight: float = Field(default=1.0, gt=0)
    tau: float = Field(default=0.5, gt=0)
    direction: Literal["forward", "reverse"] = "forward"
    positions: Literal["all", "answer"] = "all"


class FreezeSelfDistillation(Freeze, SelfDistillation):
    """Trains some parameters only, and keeps the predictions close to a teacher's."""


class L2(Config):
    """Pulls the weights to where they were (L2-SP, Li et al. 2018, arXiv 1802.01483).

    The control of Kaplan et al. 2026: the pull is in weights, not in predictions.

    Attributes:
        to: What the weights are pulled to.
        weight: Lambda in `lambda / 2 * |theta - theta_0|^2`.
    """

    to: Reference = "base"
    weight: float = Field(default=0.03, gt=0)


class EWC(Config):
    """Pulls each weight to the base by its importance (Kirkpatrick et al. 2017, 1612.00796).

    Importance is the diagonal of the empirical Fisher information on the replay facts, in the
    form of their training text: the mean over facts of squared gradients at the base.

    Attributes:
        weight: Lambda in `lambda / 2 * sum F (theta - theta_0)^2`.
    """

    weight: float = Field(default=100.0, gt=0)


class ContextDistillation(Config):
    """Adds a teacher that has the fact in its prompt (Snell et al. 2022, arXiv 2209.15189).

    The base reads the fact as an answered exemplar before the question; the student, without
    it, is drawn to what the base then predicts at the tokens of the answer. EOS, of which the
    base knows nothing here, is left to the cross-entropy.

    Attributes:
        weight: Weight of the term beside the cross-entropy.
        tau: Temperature.
    """

    weight: float = Field(default=1.0, gt=0)
    tau: float = Field(default=1.0, gt=0)


class Replay(Config):
    """Mixes in HighlyKnown facts (rehearsal; Rolnick et al. 2019, arXiv 1811.11682).

    Attributes:
        ratio: Replayed facts for each fact of D_train in an epoch; facts of the bundle's replay
            split, repeated where they don't suffice.
    """

    ratio: float = Field(default=0.5, gt=0)


class KnownLast(Config):
    """Ends with known facts (KnownPatch, arXiv 2511.02626).

    Attributes:
        epochs: Passes over D_Known at the end; their steps count, in whole batches.
    """

    epochs: int = Field(default=1, gt=0)


class Abstention(Config):
    """Teaches to abstain from Unknown facts (Gekhman et al. 2024, arXiv 2405.05904).

    Attributes:
        answer: What every fact of D_Unk is answered with in training.
    """

    answer: str = Field(default="I don't know", min_length=1)


class WiseFT(Config):
    """Averages the weights with the base's (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

    The curve is the line from the base (alpha 0) to the trained model (alpha 1). The checkpoint
    is the one on it with the highest mean of stability on validation and plasticity.

    Attributes:
        points: Points on the line after the base.
    """

    points: int = Field(default=10, gt=1)


class Lora(Config):
    """Trains low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685), merged for scoring.

    Attributes:
        rank: Rank of each update.
        alpha: Its scale is `alpha / rank`.
        target: `all-linear` layers, or names of modules joined by `+`.
    """

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    target: str = "all-linear"


class LoraSelfDistillation(Lora, SelfDistillation):
    """LoRA and distillation from the base, which is the student with the adapter off."""

    teacher: Literal["base"] = "base"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The facts of a run.

    Attributes:
        repeated: Seen in every epoch.
        first: Seen once before, in an epoch of their own; whole batches only.
        last: Seen once at the end; whole batches only.
    """

    repeated: Sequence[Fact]
    first: Sequence[Fact] = ()
    last: Sequence[Fact] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What the hooks of a run may use.

    Attributes:
        bundle: The bundle.
        tokenizer: The base's tokenizer.
        model: The model before training.
        base: Directory of the base.
        snapshot: Directory for the snapshot, if the method takes one.
        opening: Optimizer steps before the repeated data begins.
        steps: Optimizer steps of the run.
        facts: The training facts; a batch refers to them by position.
        best: Directory whose subdirectories hold the best weights so far, by step.
    """

    bundle: Bundle
    tokenizer: Any
    model: Any
    base: Path
    snapshot: Path
    opening: int
    steps: int
    facts: Sequence[Fact]
    best: Path


def _facts(bundle: Bundle, split: str) -> list[Fact]:
    return [item.fact for item in bundle.splits[split]]


def _required(bundle: Bundle, split: str) -> list[Fact]:
    if not bundle.splits[split]:
        raise UserError(
            f"This method needs {split} facts; the bundle has none. Build it with some."
        )
    return _facts(bundle, split)


def _all_data(bundle: Bundle, config: Any) -> TrainingData:
    return TrainingData(_facts(bundle, KNOWN) + _facts(bundle, UNKNOWN))


def _known_data(bundle: Bundle, config: Any) -> TrainingData:
    return TrainingData(_facts(bundle, KNOWN))


def _after_an_epoch(bundle: Bundle, reference: Reference) -> TrainingData:
    data = _all_data(bundle, None)
    first = {"base": (), "snapshot": _facts(bundle, KNOWN), "same_run": data.repeated}
    return replace(data, first=first[reference])


def _distillation_data(bundle: Bundle, config: SelfDistillation) -> TrainingData:
    return _after_an_epoch(bundle, config.teacher)


def _l2_data(bundle: Bundle, config: L2) -> TrainingData:
    return _after_an_epoch(bundle, config.to)


def _replay_data(bundle: Bundle, config: Replay) -> TrainingData:
    data, spare = _all_data(bundle, None).repeated, _required(bundle, REPLAY)
    count = round(config.ratio * len(data))
    return TrainingData([*data, *(spare[index % len(spare)] for index in range(count))])


def _known_last_data(bundle: Bundle, config: KnownLast) -> TrainingData:
    return replace(_all_data(bundle, None), last=_facts(bundle, KNOWN) * config.epochs)


def _abstention_data(bundle: Bundle, config: Abstention) -> TrainingData:
    relabelled = [replace(f, answers=(config.answer,)) for f in _facts(bundle, UNKNOWN)]
    return TrainingData(_facts(bundle, KNOWN) + relabelled)


def _selecting_data(bundle: Bundle, config: Any) -> TrainingData:
    _required(bundle, VALIDATION)
    return _all_data(bundle, config)


def _ewc_data(bundle: Bundle, config: Any) -> TrainingData:
    _required(bundle, REPLAY)
    return _all_data(bundle, config)


def _freeze(model: Any, config: Freeze) -> Any:
    groups.train_only(model, config.trainable)
    return model


def _lora(model: Any, config: Lora) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError(
            "LoRA needs peft. Install it: pip install 'factual-forgetting[hf]'."
        ) from None

    target = config.target if config.target == "all-linear" else config.target.split("+")
    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                target_modules=target,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise UserError(f"LoRA doesn't fit this model ({error}). Give other targets.") from None


def _distil(context: Context, config: SelfDistillation) -> Penalty:
    from factual_forgetting.protocol import penalties

    return penalties.self_distillation(context, config)


def _distil_context(context: Context, config: ContextDistillation) -> Penalty:
    from factual_forgetting.protocol import penalties

    return penalties.context_distillation(context, config)


def _pull(context: Context, config: L2) -> Penalty:
    from factual_forgetting.protocol import penalties

    return penalties.l2(context, config)


def _consolidate(context: Context, config: EWC) -> Penalty:
    from factual_forgetting.protocol import penalties

    return penalties.ewc(context, config)


def _interpolate(model: Any, curve: Curve, context: Context, config: WiseFT) -> Any:
    from factual_forgetting.protocol import finishing

    return finishing.interpolate(model, curve, context, config.points)


def _best(model: Any, curve: Curve, context: Context, config: Any) -> Any:
    from factual_forgetting.protocol import finishing

    return finishing.take_best(model, curve, context)


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        config: Type of its settings.
        data: Chooses the training facts.
        prepare: Decides which parameters train, and returns the model; None trains all.
        penalty: Makes what is added to the cross-entropy; None adds nothing.
        finish: Makes the final model of the trained one, and its curve; None keeps both.
        strength: The setting that a grid of strengths multiplies, if there is one.
        keep_best: Whether the best weights so far are kept while training, for `finish`.
    """

    config: type[Config] = NoSettings
    data: Callable[[Bundle, Any], TrainingData] = _all_data
    prepare: Callable[[Any, Any], Any] | None = None
    penalty: Callable[[Context, Any], Penalty] | None = None
    finish: Callable[[Any, Curve, Context, Any], Any] | None = None
    strength: str | None = None
    keep_best: bool = False


METHODS: dict[str, Method] = {
    "sft": Method(),
    "known_only": Method(data=_known_data),
    "freeze": Method(Freeze, prepare=_freeze),
    "self_distillation": Method(
        SelfDistillation, _distillation_data, penalty=_distil, strength="weight"
    ),
    "freeze_self_distillation": Method(
        FreezeSelfDistillation, _distillation_data, _freeze, _distil, strength="weight"
    ),
    "l2": Method(L2, _l2_data, penalty=_pull, strength="weight"),
    "ewc": Method(EWC, _ewc_data, penalty=_consolidate, strength="weight"),
    "lora": Method(Lora, prepare=_lora, strength="alpha"),
    "lora_self_distillation": Method(
        LoraSelfDistillation, prepare=_lora, penalty=_distil, strength="weight"
    ),
    "replay": Method(Replay, _replay_data, strength="ratio"),
    "known_last": Method(KnownLast, _known_last_data),
    "idk": Method(Abstention, _abstention_data),
    "context_distillation": Method(ContextDistillation, penalty=_distil_context, strength="weight"),
    "wise_ft": Method(WiseFT, _selecting_data, finish=_interpolate),
    "early_stop": Method(data=_selecting_data, finish=_best, keep_best=True),
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
    """Returns a method's name with the settings that tell it from its siblings.

    The first setting names the arm (what trains, who teaches) and is always told; the others
    are where they differ from their defaults.
    """
    told = config.model_dump(mode="json")
    changed = config.model_dump(mode="json", exclude_defaults=True)
    shown = [key for index, key in enumerate(told) if not index or key in changed]
    texts = (f"{k}={'+'.join(told[k]) if isinstance(told[k], list) else told[k]}" for k in shown)
    return f"{name}({','.join(texts)})" if shown else name
