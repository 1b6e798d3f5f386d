"""Methods: what a run does differently from plain supervised fine-tuning.

A method is its settings and at most four hooks: which parameters train, what data it sees, what
is added to the loss, and what happens after training. Adding one is an entry here and one in
`settings`; the losses are in `penalties`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from factual_forgetting.bundle.manifest import KNOWN, REPLAY, UNKNOWN, Bundle
from factual_forgetting.errors import InputError, PackageError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import groups, penalties
from factual_forgetting.protocol import settings as s
from factual_forgetting.protocol.context import Context, Penalty
from factual_forgetting.protocol.curve import CHOSEN_BY, Curve, selection_score
from factual_forgetting.protocol.data import TrainingData
from factual_forgetting.protocol.run import BEST
from factual_forgetting.protocol.weights import as_checkpoint, averaged, load_weights


def _facts(bundle: Bundle, split: str) -> list[Fact]:
    return [item.fact for item in bundle.splits[split]]


def _all_data(bundle: Bundle, settings: s.MethodSettings) -> TrainingData:
    known = _facts(bundle, KNOWN)
    seen = known + _facts(bundle, UNKNOWN)
    first = {"base": [], "snapshot": known, "same_run": seen}
    return TrainingData(seen, first=first[settings.anchor])


def _known_data(bundle: Bundle, settings: s.MethodSettings) -> TrainingData:
    return TrainingData(_facts(bundle, KNOWN))


def _replay_data(bundle: Bundle, settings: s.Replay) -> TrainingData:
    seen = _all_data(bundle, settings).repeated
    count = round(settings.ratio * len(seen))
    return TrainingData([*seen, *islice(cycle(_facts(bundle, REPLAY)), count)])


def _known_last_data(bundle: Bundle, settings: s.KnownLast) -> TrainingData:
    return replace(_all_data(bundle, settings), last=_facts(bundle, KNOWN) * settings.epochs)


def _abstention_data(bundle: Bundle, settings: s.Abstention) -> TrainingData:
    relabelled = [replace(f, answers=(settings.answer,)) for f in _facts(bundle, UNKNOWN)]
    return TrainingData(_facts(bundle, KNOWN) + relabelled)


def _lora(model: Any, settings: s.Lora) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise PackageError(
            "LoRA needs peft. Install it: pip install 'factual-forgetting[hf]'."
        ) from None

    target = settings.target if settings.target == "all-linear" else settings.target.split("+")
    try:
        size = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": 0.0}
        config = LoraConfig(target_modules=target, task_type="CAUSAL_LM", **size)
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"LoRA doesn't fit this model ({error}). Give other targets.") from None
    groups.freeze_beside_text(adapted)
    return adapted


def _interpolate(model: Any, curve: Curve, context: Context, settings: s.WiseFT) -> Any:
    """Makes the curve the line from the base to the model, and returns the best average on it.

    The last point is the returned average, on all facts; it stands one step after the others.
    """
    base = load_weights(context.base, model.device)
    trained = curve.lines()[-1]
    steps = trained["step"]
    curve.forget_after(-1)

    def add(alpha: float, step: int, loss: float | None, final: bool) -> Any:
        average = averaged(base, model, alpha)
        frozen = as_checkpoint(average, curve.protocol.stored).to(context.model.device)
        curve.evaluate(frozen, step, loss, final=final, trained=steps, alpha=alpha)
        return average

    for alpha in (index / settings.points for index in range(settings.points + 1)):
        add(alpha, round(alpha * steps), None, final=False)
    best = max(curve.lines(), key=selection_score)["alpha"]
    return add(best, steps + 1, trained["loss"], final=True)


def _take_best(model: Any, curve: Curve, context: Context, settings: s.EarlyStop) -> Any:
    """Returns the weights of the best point, at which the curve then ends."""
    best = max(curve.lines(), key=selection_score)
    chosen = load_weights(context.output / BEST / str(best["step"]), model.device)
    curve.forget_after(best["step"] - 1)
    frozen = as_checkpoint(chosen, curve.protocol.stored).to(context.model.device)
    curve.evaluate(frozen, best["step"], best["loss"], final=True)
    return chosen


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the table of methods.

    Attributes:
        select: Chooses the training facts.
        prepare: Decides which parameters train, and returns the model; None trains all.
        penalty: Makes what is added to the cross-entropy; None adds nothing.
        finish: Makes the final model of the trained one, and its curve; None keeps both.
        keep_best: Whether the best weights so far are kept while training, for `finish`.
        needs: Splits of the bundle that the method can't do without.
    """

    select: Callable[[Bundle, Any], TrainingData] = _all_data
    prepare: Callable[[Any, Any], Any] | None = None
    penalty: Callable[[Context, Any], Penalty] | None = None
    finish: Callable[[Any, Curve, Context, Any], Any] | None = None
    keep_best: bool = False
    needs: tuple[str, ...] = ()

    def data(self, bundle: Bundle, settings: s.MethodSettings) -> TrainingData:
        """Chooses the training facts.

        Raises:
            UserError: If the bundle lacks facts that the method needs.
        """
        bundle.require(self.needs, "This method")
        return self.select(bundle, settings)


METHODS: dict[str, Method] = {
    "sft": Method(),
    "known_only": Method(_known_data, needs=(KNOWN,)),
    "freeze": Method(prepare=groups.freeze),
    "self_distillation": Method(penalty=penalties.self_distillation),
    "freeze_self_distillation": Method(prepare=groups.freeze, penalty=penalties.self_distillation),
    "l2": Method(penalty=penalties.l2),
    "ewc": Method(penalty=penalties.ewc, needs=(REPLAY,)),
    "lora": Method(prepare=_lora),
    "lora_self_distillation": Method(prepare=_lora, penalty=penalties.self_distillation),
    "replay": Method(_replay_data, needs=(REPLAY,)),
    "known_last": Method(_known_last_data),
    "idk": Method(_abstention_data),
    "context_distillation": Method(penalty=penalties.context_distillation),
    "few_shot_distillation": Method(penalty=penalties.few_shot_distillation),
    "wise_ft": Method(finish=_interpolate, needs=CHOSEN_BY),
    "early_stop": Method(finish=_take_best, keep_best=True, needs=CHOSEN_BY),
}
