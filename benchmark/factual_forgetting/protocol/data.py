"""Training text and the order in which it is seen, decided before training starts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.config import Protocol

IGNORE = -100  # the label of a token that no loss counts
Example = dict[str, Any]


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


def total_steps(protocol: Protocol, d_train: int) -> int:
    """Returns the optimizer steps of a run, the same for every method on a bundle."""
    return protocol.epochs * math.ceil(d_train / protocol.batch_size)


def opening_steps(data: TrainingData, protocol: Protocol) -> int:
    """Returns the optimizer steps before the repeated data begins."""
    return len(data.first) // protocol.batch_size


def order(data: TrainingData, protocol: Protocol, steps: int, seed: int) -> list[Fact]:
    """Lays out the facts of a whole run: `steps * batch_size` facts, epoch after epoch.

    Batches run on across the ends of epochs, so that all have the same size.

    Raises:
        UserError: If what is seen once takes all steps.
    """
    rng = random.Random(f"order-{seed}")
    size = steps * protocol.batch_size
    opening = opening_steps(data, protocol) * protocol.batch_size
    closing = len(data.last) // protocol.batch_size * protocol.batch_size
    if opening + closing >= size:
        raise UserError(
            f"The run has {steps} steps; the data seen once takes all of them. Raise epochs."
        )
    sequence = rng.sample(data.first, len(data.first))[:opening]
    while len(sequence) < size - closing:
        sequence += rng.sample(data.repeated, len(data.repeated))
    return sequence[: size - closing] + rng.sample(data.last, len(data.last))[:closing]


def limit(model: Any) -> int | None:
    """Returns the most tokens that a model takes, if it has a limit."""
    found = getattr(model.config, "max_position_embeddings", None)
    return int(found) if found is not None else None


def encode(
    facts: Sequence[Fact],
    tokenizer: Any,
    longest: int | None,
    preface: Callable[[Fact], str] | None = None,
) -> list[Example]:
    """Tokenises facts by the one text rule: prompt, space, first answer, EOS; jointly.

    Args:
        facts: Facts to encode.
        tokenizer: The base's tokenizer; it adds BOS if it does so by itself.
        longest: Most tokens that the model takes, if it has a limit.
        preface: Text to put before a fact's prompt; none by default.

    Returns:
        `input_ids` and `labels` of each fact; labels are `IGNORE` outside answer and EOS.

    Raises:
        UserError: If the tokenizer has no EOS, or a fact is too long.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no EOS token; answers would never end. Set eos_token.")
    if not facts:
        return []  # transformers' tokenizers fail on no text
    before = [preface(fact) if preface else "" for fact in facts]
    prompts = [b + question_prompt(fact.question) for b, fact in zip(before, facts, strict=True)]
    whole = [f"{p} {fact.answers[0]}" for p, fact in zip(prompts, facts, strict=True)]
    rows = zip(facts, tokenizer(prompts)["input_ids"], tokenizer(whole)["input_ids"], strict=True)
    examples = []
    for fact, prompt, ids in rows:
        ids = [*ids, tokenizer.eos_token_id]
        if longest is not None and len(ids) > longest:
            raise UserError(
                f"'{fact.question}' takes {len(ids)} tokens with its answer; the model takes "
                f"{longest}. Leave the fact out of the bundle."
            )
        # Joint tokenisation may merge over the boundary; then the merged token is answer.
        start = next((i for i, t in enumerate(prompt) if ids[i] != t), len(prompt))
        examples.append({"input_ids": ids, "labels": [IGNORE] * start + ids[start:]})
    return examples


class Schedule:
    """The examples of a run in order, each with the token counts of its whole batch.

    The counts are known before training, so the loss needs no communication to divide by
    them, and no split over devices or accumulation changes it.
    """

    def __init__(
        self, sequence: Sequence[int], examples: Sequence[Example], batch_size: int
    ) -> None:
        """Lays out the run.

        Args:
            sequence: Positions of examples in the order in which they are seen.
            examples: What `encode` returned.
            batch_size: Facts in an optimizer step.
        """
        self._sequence = sequence
        self._examples = examples
        self._batch_size = batch_size
        self._counts = [
            self._count(sequence[start : start + batch_size])
            for start in range(0, len(sequence), batch_size)
        ]

    def _count(self, batch: Sequence[int]) -> tuple[int, int]:
        rows = [self._examples[index] for index in batch]
        answers = sum(label != IGNORE for row in rows for label in row["labels"])
        return answers, sum(len(row["input_ids"]) - 1 for row in rows)

    def __len__(self) -> int:
        """Returns the number of examples in the whole run."""
        return len(self._sequence)

    def __getitem__(self, place: int) -> Example:
        """Returns an example, which `fact` it is, and its batch's `answers` and `positions`."""
        answers, positions = self._counts[place // self._batch_size]
        index = self._sequence[place]
        counts = {"facts": index, "answers": answers, "positions": positions}
        return {**self._examples[index], **counts}

    def between(self, first: int, last: int) -> Sequence[int]:
        """Returns the positions of the examples in optimizer steps first + 1 to last."""
        return self._sequence[first * self._batch_size : last * self._batch_size]

    def tokens(self, step: int) -> int:
        """Returns the tokens, pads apart, that the student reads in the first steps."""
        return sum(len(self._examples[index]["input_ids"]) for index in self.between(0, step))


def collate(rows: Sequence[Example], pad: int) -> dict[str, Any]:
    """Pads examples on the right to tensors of shape (batch, longest); counts are (batch,)."""
    import torch

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    held = torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(name: str, fill: int) -> torch.Tensor:
        whole = torch.full(held.shape, fill)
        whole[held] = torch.tensor([item for row in rows for item in row[name]])
        return whole

    counts = rows[0].keys() - {"input_ids", "labels"}
    return {
        "input_ids": padded("input_ids", pad),
        "attention_mask": held.long(),
        "labels": padded("labels", IGNORE),
        **{name: torch.tensor([row[name] for row in rows]) for name in counts},
    }
