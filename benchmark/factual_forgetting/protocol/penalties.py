"""What methods add to the cross-entropy: teachers and pulls on the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from factual_forgetting.bundle.manifest import REPLAY
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol import losses, methods
from factual_forgetting.protocol.data import Example, collate, encode, limit
from factual_forgetting.slick.prompts import SEPARATOR, question_prompt


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the student: a share of an optimizer step.

    Attributes:
        number: Optimizer steps done.
        model: The student, without wrappers of data parallelism.
        inputs: `input_ids` and `attention_mask`, shape (batch, length).
        logits: The student's, shape (batch, length, vocabulary).
        labels: As in `losses.cross_entropy`.
        facts: Positions of the batch's facts in `Context.facts`, shape (batch,).
        answers: Answer and EOS tokens in the whole optimizer step.
        positions: Predicted positions in the whole optimizer step.
        share: Facts in this pass over facts in the whole optimizer step.
        save: Writes the student's whole weights to a directory; every process calls it.
    """

    number: int
    model: Any
    inputs: dict[str, Tensor]
    logits: Tensor
    labels: Tensor
    facts: Tensor
    answers: Tensor
    positions: Tensor
    share: float
    save: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Penalty:
    """A term of the loss.

    Attributes:
        term: Computes this pass's share of it; the shares of an optimizer step sum to it.
        from_step: Optimizer steps after which it counts.
        teacher_tokens: Tokens that a teacher reads for a training fact, by its position.
        whole_weights: Whether it reads the student's weights, which must not be sharded.
    """

    term: Callable[[Step], Tensor]
    from_step: int = 0
    teacher_tokens: Callable[[Sequence[int]], int] = lambda lengths: 0
    whole_weights: bool = False


@dataclass
class Frozen:
    """A frozen model: the base, or a snapshot that is written when its step comes.

    Attributes:
        path: Directory of its weights.
    """

    path: Path
    _model: Any = field(default=None)

    def at(self, step: Step) -> Any:
        """Returns the model in eval mode on the student's device, sharded as the student is.

        Raises:
            UserError: If its vocabulary isn't the student's.
        """
        if self._model is None:
            if not (self.path / "config.json").exists():
                step.save(self.path)
            model = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=torch.float32,
                use_safetensors=True,
                attn_implementation=step.model.config._attn_implementation,
            )
            if model.config.vocab_size != step.model.config.vocab_size:
                raise UserError(
                    f"The teacher in {self.path} has {model.config.vocab_size} tokens, the "
                    f"student {step.model.config.vocab_size}. Distillation needs one vocabulary."
                )
            model.requires_grad_(False).eval().to(step.logits.device)
            self._model = _shard_alike(model, step.model)
        return self._model


def save_whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Writes a directory beside and renames it: what is there is whole."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _shard_alike(model: Any, student: Any) -> Any:
    """Shards a model as `fully_shard` sharded the student; leaves it whole otherwise."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    sharded = [name for name, part in student.named_modules() if isinstance(part, FSDPModule)]
    for name in reversed(sharded):
        fully_shard(model.get_submodule(name), reshard_after_forward=True)
    return model


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


def self_distillation(context: methods.Context, config: methods.SelfDistillation) -> Penalty:
    """The term of `methods.SelfDistillation`."""
    from_base = config.teacher == "base"
    frozen = Frozen(context.base if from_base else context.snapshot)

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


def _encoded(context: methods.Context, facts: Sequence[Fact], told: bool = False) -> list[Example]:
    longest = limit(context.model)
    rows = encode(facts, context.tokenizer, longest, preface=_preface if told else None)
    return list(rows)


def _preface(fact: Fact) -> str:
    """The fact as an answered exemplar, before its own question."""
    return f"{question_prompt(fact.question)} {fact.answers[0]}{SEPARATOR}"


def context_distillation(context: methods.Context, config: methods.ContextDistillation) -> Penalty:
    """The term of `methods.ContextDistillation`."""
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


def l2(context: methods.Context, config: methods.L2) -> Penalty:
    """The term of `methods.L2`."""
    from_base = config.to == "base"
    frozen = Frozen(context.base if from_base else context.snapshot)

    def term(step: Step) -> Tensor:
        anchor = dict(frozen.at(step).named_parameters())
        return step.share * config.weight * _half_squared_distance(step, anchor, None)

    return Penalty(term, from_step=0 if from_base else context.opening, whole_weights=True)


def ewc(context: methods.Context, config: methods.EWC) -> Penalty:
    """The term of `methods.EWC`."""
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
