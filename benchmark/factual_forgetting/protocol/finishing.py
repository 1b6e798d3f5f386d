"""What methods do after training: averages with the base, and the best point."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from factual_forgetting.protocol.context import Context
from factual_forgetting.protocol.curve import Curve, selection_score
from factual_forgetting.protocol.settings import EarlyStop, WiseFT
from factual_forgetting.protocol.weights import as_checkpoint, averaged


def interpolate(model: Any, curve: Curve, context: Context, settings: WiseFT) -> Any:
    """Makes the curve the line from the base to the model, and returns the best average on it.

    The last point is the returned average, on all facts; it stands one step after the others.
    """
    points = settings.points
    base = AutoModelForCausalLM.from_pretrained(
        context.base, dtype=torch.float32, use_safetensors=True
    ).to(model.device)
    loss = curve.lines()[-1]["loss"]
    curve.forget_after(-1)
    for index in range(points + 1):
        alpha, step = index / points, round(index / points * context.steps)
        average = as_checkpoint(averaged(base, model, alpha), curve.protocol.checkpoint_dtype)
        curve.evaluate(average, step, None, final=False, trained=context.steps, alpha=alpha)
    best = max(curve.lines(), key=selection_score)["alpha"]
    chosen = averaged(base, model, best)
    curve.evaluate(
        as_checkpoint(chosen, curve.protocol.checkpoint_dtype),
        context.steps + 1,
        loss,
        final=True,
        trained=context.steps,
        alpha=best,
    )
    return chosen


def take_best(model: Any, curve: Curve, context: Context, settings: EarlyStop) -> Any:
    """Returns the weights of the best point, at which the curve then ends."""
    best = max(curve.lines(), key=selection_score)
    chosen = AutoModelForCausalLM.from_pretrained(
        context.best / str(best["step"]), dtype=torch.float32, use_safetensors=True
    ).to(model.device)
    curve.forget_after(best["step"] - 1)
    frozen = as_checkpoint(chosen, curve.protocol.checkpoint_dtype)
    curve.evaluate(frozen, best["step"], best["loss"], final=True)
    return chosen
