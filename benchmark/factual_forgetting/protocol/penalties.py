"""What methods add to the cross-entropy: teachers and pulls on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from factual_forgetting.bundle.manifest import REPLAY
from factual_forgetting.engines.prompts import SEPARATOR, question_prompt
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import losses
from factual_forgetting.protocol.context import Context, Penalty, Step
from factual_forgetting.protocol.data import Example, collate, encode, limit
from factual_forgetting.protocol.settings import EWC, L2, ContextDistillation, SelfDistillation
from factual_forgetting.protocol.weights import Frozen


@contextmanager
def _adapter_off(model: Any) -> Iterator[None]:
    """The base inside a LoRA model, in eval mode."""
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train()


def _taught(frozen: Frozen, step: Step, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns the teacher's logits; of a LoRA student the teacher is the adapter switched off."""
    adapted = hasattr(step.model, "disable_adapter") and hasattr(step.model, "peft_config")
    teacher = step.model if adapted else frozen.at(step)
    with torch.no_grad(), _adapter_off(step.model) if adapted else nullcontext():
        logits: Tensor = teacher(**inputs).logits
    return logits


def self_distillation(context: Context, config: SelfDistillation) -> Penalty:
    """The term of `settings.SelfDistillation`."""
    from_base = config.teacher == "base"
    frozen = Frozen(context.base) if from_base else Frozen(context.snapshot, snapshot=True)

    def term(step: Step) -> Tensor:
        marked = losses.distilled_positions(
            step.inputs["attention_mask"], step.labels, config.positions
        )
        count = step.positions if config.positions == "all" else step.answers
        taught = _taught(frozen, step, step.inputs)
        return config.weight * losses.distillation(
            step.logits, taught, marked, config.tau, count, config.direction
        )

    lengths = [len(row["input_ids"]) for row in _encoded(context, context.facts)]
    return Penalty(
        term,
        from_step=0 if from_base else context.opening,
        teacher_tokens=lambda facts: sum(lengths[index] for index in facts),
    )


def _encoded(context: Context, facts: Sequence[Fact], told: bool = False) -> list[Example]:
    longest = limit(context.model)
    rows = encode(facts, context.tokenizer, longest, preface=_preface if told else None)
    return list(rows)


def _preface(fact: Fact) -> str:
    """The fact as an answered exemplar, before its own question."""
    return f"{question_prompt(fact.question)} {fact.answers[0]}{SEPARATOR}"


def context_distillation(context: Context, config: ContextDistillation) -> Penalty:
    """The term of `ContextDistillation`."""
    frozen = Frozen(context.base)
    told = _encoded(context, context.facts, told=True)
    pad = context.tokenizer.pad_token_id or 0

    def term(step: Step) -> Tensor:
        rows = [told[index] for index in step.facts.tolist()]
        batch = {k: v.to(step.logits.device) for k, v in collate(rows, pad).items()}
        inputs = {name: batch[name] for name in step.inputs}
        taught = losses.answer_logits(_taught(frozen, step, inputs), batch["labels"])
        chosen = losses.answer_logits(step.logits, step.labels)
        kl = losses.divergence(chosen, taught, config.tau, "forward")
        return config.weight * kl / step.answers

    return Penalty(
        term,
        teacher_tokens=lambda facts: sum(len(told[index]["input_ids"]) for index in facts),
    )


def _half_squared_distance(step: Step, anchor: Mapping[str, Tensor], fisher: Any) -> Tensor:
    total = torch.zeros((), device=step.logits.device)
    for name, parameter in step.model.named_parameters():
        if parameter.requires_grad:
            squares = (parameter.float() - anchor[name]).square()
            total = total + (squares * fisher[name] if fisher else squares).sum()
    return total / 2


def l2(context: Context, config: L2) -> Penalty:
    """The term of `settings.L2`."""
    from_base = config.to == "base"
    frozen = Frozen(context.base) if from_base else Frozen(context.snapshot, snapshot=True)

    def term(step: Step) -> Tensor:
        anchor = dict(frozen.at(step).named_parameters())
        return step.share * config.weight * _half_squared_distance(step, anchor, None)

    return Penalty(term, from_step=0 if from_base else context.opening, whole_weights=True)


def ewc(context: Context, config: EWC) -> Penalty:
    """The term of `settings.EWC`."""
    frozen = Frozen(context.base)
    facts = [item.fact for item in context.bundle.splits[REPLAY]]
    fisher = diagonal_fisher(context.model, _encoded(context, facts))

    def term(step: Step) -> Tensor:
        anchor = dict(frozen.at(step).named_parameters())
        return step.share * config.weight * _half_squared_distance(step, anchor, fisher)

    return Penalty(term, whole_weights=True)


def diagonal_fisher(model: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Means over examples of the squared gradient of the summed negative log-likelihood.

    Args:
        model: The model; its gradients are cleared.
        examples: Encoded facts.

    Returns:
        A tensor for each trainable parameter, in its shape.
    """
    fisher = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    for example in examples:
        batch = {name: value.to(model.device) for name, value in collate([example], 0).items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        model.zero_grad()
        one = torch.ones((), device=model.device)
        torch.autograd.backward(losses.cross_entropy(logits, batch["labels"], one))
        for name, parameter in model.named_parameters():
            if name in fisher and parameter.grad is not None:
                fisher[name] += parameter.grad.square() / len(examples)
    model.zero_grad()
    return fisher
