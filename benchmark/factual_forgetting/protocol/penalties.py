"""What methods add to the cross-entropy: teachers and pulls on the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from factual_forgetting.bundle.manifest import REPLAY
from factual_forgetting.engines.prompts import exemplar_prefix
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import losses
from factual_forgetting.protocol import settings as s
from factual_forgetting.protocol.context import Context, Penalty, Step
from factual_forgetting.protocol.data import Example, collate
from factual_forgetting.protocol.run import SNAPSHOT
from factual_forgetting.protocol.weights import Frozen, computing


def _anchor(context: Context, settings: s.MethodSettings) -> Frozen:
    if settings.anchor == "base":
        return Frozen(context.base, bf16=context.teacher_autocast)
    return Frozen(context.output / SNAPSHOT, snapshot=True, bf16=context.teacher_autocast)


@contextmanager
def _adapter_off(model: Any) -> Iterator[Any]:
    """The base inside a LoRA model, in eval mode."""
    model.eval()
    try:
        with model.disable_adapter():
            yield model
    finally:
        model.train()


def _taught(frozen: Frozen, step: Step, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns the teacher's logits; of a LoRA student the teacher is the adapter switched off."""
    adapted = hasattr(step.model, "disable_adapter")
    held = _adapter_off(step.model) if adapted else nullcontext(frozen.at(step))
    with torch.no_grad(), held as teacher, computing(teacher, bf16=frozen.bf16):
        logits: Tensor = teacher(**inputs).logits
    return logits


def self_distillation(context: Context, settings: s.SelfDistillation) -> Penalty:
    """The term of `settings.SelfDistillation`."""
    frozen = _anchor(context, settings)

    def term(step: Step) -> Tensor:
        marked = losses.distilled_positions(
            step.inputs["attention_mask"], step.labels, settings.positions
        )
        count = step.positions if settings.positions == "all" else step.answers
        taught = _taught(frozen, step, step.inputs)
        return settings.weight * losses.distillation(
            step.logits, taught, marked, settings.tau, count, settings.direction
        )

    lengths = [len(row["input_ids"]) for row in context.encode(context.facts)]
    return Penalty(term, from_step=context.opening, teacher_tokens=lengths)


def context_distillation(context: Context, settings: s.ContextDistillation) -> Penalty:
    """The term of `settings.ContextDistillation`."""
    return _told_before(context, settings, lambda fact: exemplar_prefix([fact]))


def few_shot_distillation(context: Context, settings: s.FewShotDistillation) -> Penalty:
    """The term of `settings.FewShotDistillation`."""
    return _told_before(context, settings, context.bundle.few_shot_prefix)


def _told_before(
    context: Context,
    settings: s.ContextDistillation | s.FewShotDistillation,
    preface: Callable[[Fact], str],
) -> Penalty:
    """Distils the answers of the base, which reads something before the question."""
    frozen = _anchor(context, settings)
    told = context.encode(context.facts, preface=preface)

    def term(step: Step) -> Tensor:
        rows = context.collate([told[index] for index in step.facts.tolist()])
        batch = {name: tensor.to(step.logits.device) for name, tensor in rows.items()}
        inputs = {name: batch[name] for name in step.inputs}
        taught = losses.answer_logits(_taught(frozen, step, inputs), batch["labels"])
        chosen = losses.answer_logits(step.logits, step.labels)
        kl = losses.kl_divergence(chosen, taught, settings.tau, "forward")
        return settings.weight * kl / step.answers

    return Penalty(term, teacher_tokens=[len(row["input_ids"]) for row in told])


def _pull(
    context: Context, settings: s.L2 | s.EWC, importance: Mapping[str, Tensor] | None = None
) -> Penalty:
    frozen = _anchor(context, settings)

    def term(step: Step) -> Tensor:
        anchor = dict(frozen.at(step).named_parameters())
        total = torch.zeros((), device=step.logits.device)
        for name, parameter in step.model.named_parameters():
            if parameter.requires_grad:
                weight = importance[name] if importance else None
                total = total + _squared_distance(parameter, anchor[name], weight)
        return step.share * settings.weight * (total / 2)

    return Penalty(term, from_step=context.opening, of_weights=True)


def _squared_distance(parameter: Tensor, anchor: Tensor, importance: Tensor | None) -> Tensor:
    found: Tensor = _SquaredDistance.apply(parameter, anchor, importance)  # type: ignore[no-untyped-call]
    return found


class _SquaredDistance(torch.autograd.Function):
    """Weighted squared distance of a parameter from its anchor; keeps no difference for later."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, anchor: Tensor, importance: Tensor | None) -> Tensor:
        ctx.save_for_backward(parameter, anchor, importance)
        squares = (parameter - anchor).square()
        return (squares if importance is None else squares * importance).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        parameter, anchor, importance = ctx.saved_tensors
        scale = gradients[0] if importance is None else gradients[0] * importance
        return scale * (2 * (parameter - anchor)), None, None


def l2(context: Context, settings: s.L2) -> Penalty:
    """The term of `settings.L2`."""
    return _pull(context, settings)


def ewc(context: Context, settings: s.EWC) -> Penalty:
    """The term of `settings.EWC`."""
    facts = [item.fact for item in context.bundle.splits[REPLAY]]
    rows, bf16 = context.encode(facts), context.teacher_autocast
    return _pull(context, settings, diagonal_fisher(context.model, rows, bf16=bf16))


def diagonal_fisher(
    model: Any, examples: Sequence[Example], *, bf16: bool = False
) -> dict[str, Tensor]:
    """Means over examples of the squared gradient of the summed negative log-likelihood.

    Returns a tensor for each trainable parameter, in its shape; clears the model's gradients.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    for example in examples:
        batch = {name: value.to(model.device) for name, value in collate([example], 0).items()}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with computing(model, bf16=bf16):
            logits = model(**inputs).logits
        model.zero_grad()
        one = torch.ones((), device=model.device)
        torch.autograd.backward(losses.cross_entropy(logits, batch["labels"], one))
        for name, parameter in trained.items():
            if parameter.grad is not None:
                fisher[name] += parameter.grad.square() / len(examples)
    model.zero_grad()
    return fisher
