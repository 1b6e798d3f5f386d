"""What the hooks of a method are given: the run, and each forward pass of the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.models import context_length
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.data import Example, collate, encode


@dataclass(frozen=True, slots=True)
class Context:
    """What the hooks of a run may use.

    Attributes:
        bundle: The bundle.
        tokenizer: The base's tokenizer.
        model: The model before training.
        base: Directory of the base.
        output: Directory of the run.
        facts: The training facts; a batch refers to them by position.
        opening: Optimizer steps before the repeated data begins.
        teacher_autocast: Whether teachers compute in bf16 autocast.
    """

    bundle: Bundle
    tokenizer: Any
    model: Any
    base: Path
    output: Path
    facts: Sequence[Fact] = ()
    opening: int = 0
    teacher_autocast: bool = False

    def encode(self, facts: Sequence[Fact], **options: Any) -> list[Example]:
        """Tokenises facts for the model, as `data.encode`."""
        return encode(facts, self.tokenizer, context_length(self.model), **options)

    def collate(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Pads examples to tensors, as `data.collate`."""
        return collate(rows, self.tokenizer.pad_token_id or 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the student: a share of an optimizer step.

    Attributes:
        model: The student, without wrappers of data parallelism.
        inputs: `input_ids` and `attention_mask`, shape (batch, length).
        logits: The student's, shape (batch, length, vocabulary).
        labels: As in `losses.cross_entropy`.
        facts: Positions of the batch's facts in `Context.facts`, shape (batch,).
        answers: Answer and EOS tokens in the whole optimizer step.
        positions: Predicted positions in the whole optimizer step.
        share: Of the optimizer step: facts in this pass over all of its facts; for a term of the
            weights alone, this process among all.
        save: Writes the student's whole weights to a directory, unless they are there already;
            every process calls it.
    """

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
        teacher_tokens: What a teacher, if any, reads for each of `Context.facts`.
        of_weights: Whether it is of the student's weights alone, which must not be sharded: it is
            computed once in an optimizer step.
    """

    term: Callable[[Step], Tensor]
    from_step: int = 0
    teacher_tokens: Sequence[int] = ()
    of_weights: bool = False
