"""What methods do after training: averages with the base, and the best point."""

from __future__ import annotations

from typing import Any

from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.curve import Curve, selection_score
from factual_forgetting.protocol.run import BEST
from factual_forgetting.protocol.settings import EarlyStop, WiseFT
from factual_forgetting.protocol.weights import as_checkpoint, averaged, load_weights


def interpolate(model: Any, curve: Curve, context: Context, settings: WiseFT) -> Any:
    """Makes the curve the line from the base to the model, and returns the best average on it.

    The last point is the returned average, on all facts; it stands one step after the others.
    """
    base = load_weights(context.base, model.device)
    trained = curve.lines()[-1]
    steps = trained["step"]
    curve.forget_after(-1)

    def add(alpha: float, step: int, loss: float | None, final: bool) -> Any:
        average = averaged(base, model, alpha)
        frozen = as_checkpoint(average, curve.protocol.checkpoint_dtype)
        curve.evaluate(frozen, step, loss, final=final, trained=steps, alpha=alpha)
        return average

    for index in range(settings.points + 1):
        alpha = index / settings.points
        add(alpha, round(alpha * steps), None, final=False)
    best = max(curve.lines(), key=selection_score)["alpha"]
    return add(best, steps + 1, trained["loss"], final=True)


def take_best(model: Any, curve: Curve, context: Context, settings: EarlyStop) -> Any:
    """Returns the weights of the best point, at which the curve then ends."""
    best = max(curve.lines(), key=selection_score)
    chosen = load_weights(context.output / BEST / str(best["step"]), model.device)
    curve.forget_after(best["step"] - 1)
    frozen = as_checkpoint(chosen, curve.protocol.checkpoint_dtype)
    curve.evaluate(frozen, best["step"], best["loss"], final=True)
    return chosen
