"""Methods: what a run does differently from plain supervised fine-tuning.

A method is its settings and at most four hooks: which parameters train, what data it sees, what
is added to the loss, and what happens after training. Adding one is an entry here and one in
`settings`; what computes with tensors is in `penalties` and `finishing`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from factual_forgetting.bundle.manifest import KNOWN, REPLAY, UNKNOWN, VALIDATION, Bundle
from factual_forgetting.errors import InputError, PackageError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import finishing, groups, penalties
from factual_forgetting.protocol.context import Context, Penalty
from factual_forgetting.protocol.curve import Curve
from factual_forgetting.protocol.data import TrainingData
from factual_forgetting.protocol.settings import (
    Abstention,
    KnownLast,
    Lora,
    MethodSettings,
    Replay,
)


def _facts(bundle: Bundle, split: str) -> list[Fact]:
    return [item.fact for item in bundle.splits[split]]


def _all_data(bundle: Bundle, settings: MethodSettings) -> TrainingData:
    known = _facts(bundle, KNOWN)
    seen = known + _facts(bundle, UNKNOWN)
    first = {"base": [], "snapshot": known, "same_run": seen}
    return TrainingData(seen, first=first[settings.anchor])


def _known_data(bundle: Bundle, settings: MethodSettings) -> TrainingData:
    return TrainingData(_facts(bundle, KNOWN))


def _replay_data(bundle: Bundle, settings: Replay) -> TrainingData:
    seen = _all_data(bundle, settings).repeated
    count = round(settings.ratio * len(seen))
    return TrainingData([*seen, *islice(cycle(_facts(bundle, REPLAY)), count)])


def _known_last_data(bundle: Bundle, settings: KnownLast) -> TrainingData:
    return replace(_all_data(bundle, settings), last=_facts(bundle, KNOWN) * settings.epochs)


def _abstention_data(bundle: Bundle, settings: Abstention) -> TrainingData:
    relabelled = [replace(f, answers=(settings.answer,)) for f in _facts(bundle, UNKNOWN)]
    return TrainingData(_facts(bundle, KNOWN) + relabelled)


def _lora(model: Any, settings: Lora) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise PackageError(
            "LoRA needs peft. Install it: pip install 'factual-forgetting[hf]'."
        ) from None

    target = settings.target if settings.target == "all-linear" else settings.target.split("+")
    try:
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=target,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"LoRA doesn't fit this model ({error}). Give other targets.") from None


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        select: Chooses the training facts.
        prepare: Decides which parameters train, and returns the model; None trains all.
        penalty: Makes what is added to the cross-entropy; None adds nothing.
        finish: Makes the final model of the trained one, and its curve; None keeps both.
        keep_best: Whether the best weights so far are kept while training, for `finish`.
        needs: A split of the bundle that the method can't do without.
    """

    select: Callable[[Bundle, Any], TrainingData] = _all_data
    prepare: Callable[[Any, Any], Any] | None = None
    penalty: Callable[[Context, Any], Penalty] | None = None
    finish: Callable[[Any, Curve, Context, Any], Any] | None = None
    keep_best: bool = False
    needs: str | None = None

    def data(self, bundle: Bundle, settings: MethodSettings) -> TrainingData:
        """Chooses the training facts.

        Raises:
            UserError: If the bundle lacks facts that the method needs.
        """
        if self.needs and not bundle.splits[self.needs]:
            raise InputError(
                f"This method needs {self.needs} facts; the bundle has none. Build it with some."
            )
        return self.select(bundle, settings)


METHODS: dict[str, Method] = {
    "sft": Method(),
    "known_only": Method(_known_data),
    "freeze": Method(prepare=groups.freeze),
    "self_distillation": Method(penalty=penalties.self_distillation),
    "freeze_self_distillation": Method(prepare=groups.freeze, penalty=penalties.self_distillation),
    "l2": Method(penalty=penalties.l2),
    "ewc": Method(penalty=penalties.ewc, needs=REPLAY),
    "lora": Method(prepare=_lora),
    "lora_self_distillation": Method(prepare=_lora, penalty=penalties.self_distillation),
    "replay": Method(_replay_data, needs=REPLAY),
    "known_last": Method(_known_last_data),
    "idk": Method(_abstention_data),
    "context_distillation": Method(penalty=penalties.context_distillation),
    "wise_ft": Method(finish=finishing.interpolate, needs=VALIDATION),
    "early_stop": Method(finish=finishing.take_best, keep_best=True, needs=VALIDATION),
}
