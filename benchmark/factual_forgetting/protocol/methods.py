"""Methods: what a run does differently from plain supervised fine-tuning.

A method is its settings and at most four hooks: which parameters train, what data it sees, what
is added to the loss, and what happens after training. Adding one is an entry here and one in
`settings`; what computes with tensors is in `penalties` and `finishing`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from factual_forgetting.bundle.manifest import KNOWN, REPLAY, UNKNOWN, VALIDATION, Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import finishing, groups, penalties
from factual_forgetting.protocol.context import Context, Penalty
from factual_forgetting.protocol.curve import Curve
from factual_forgetting.protocol.data import TrainingData
from factual_forgetting.protocol.settings import (
    L2,
    Abstention,
    Freeze,
    KnownLast,
    Lora,
    Reference,
    Replay,
    SelfDistillation,
)


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


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        data: Chooses the training facts.
        prepare: Decides which parameters train, and returns the model; None trains all.
        penalty: Makes what is added to the cross-entropy; None adds nothing.
        finish: Makes the final model of the trained one, and its curve; None keeps both.
        keep_best: Whether the best weights so far are kept while training, for `finish`.
    """

    data: Callable[[Bundle, Any], TrainingData] = _all_data
    prepare: Callable[[Any, Any], Any] | None = None
    penalty: Callable[[Context, Any], Penalty] | None = None
    finish: Callable[[Any, Curve, Context, Any], Any] | None = None
    keep_best: bool = False


METHODS: dict[str, Method] = {
    "sft": Method(),
    "known_only": Method(_known_data),
    "freeze": Method(prepare=_freeze),
    "self_distillation": Method(_distillation_data, penalty=penalties.self_distillation),
    "freeze_self_distillation": Method(_distillation_data, _freeze, penalties.self_distillation),
    "l2": Method(_l2_data, penalty=penalties.l2),
    "ewc": Method(_ewc_data, penalty=penalties.ewc),
    "lora": Method(prepare=_lora),
    "lora_self_distillation": Method(prepare=_lora, penalty=penalties.self_distillation),
    "replay": Method(_replay_data),
    "known_last": Method(_known_last_data),
    "idk": Method(_abstention_data),
    "context_distillation": Method(penalty=penalties.context_distillation),
    "wise_ft": Method(_selecting_data, finish=finishing.interpolate),
    "early_stop": Method(_selecting_data, finish=finishing.take_best, keep_best=True),
}
