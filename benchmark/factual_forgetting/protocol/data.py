"""Training text and the order in which it is seen, decided before training starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.recipe import Protocol

IGNORE = -100  # the label of a token that no loss counts
Example = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The facts of a run: some in every epoch; the first and last once, in whole batches only."""

    repeated: Sequence[Fact]
    first: Sequence[Fact] = ()
    last: Sequence[Fact] = ()


def seen_order(data: TrainingData, protocol: Protocol, steps: int, seed: int) -> list[Fact]:
    """Lays out the `steps * batch_size` facts of a run; batches run on across ends of epochs.

    Raises:
        UserError: If what is seen once takes all steps.
    """
    if not data.repeated:
        raise InputError("There is no fact to train on. Build the bundle with some.")
    rng = random.Random(f"order-{seed}")
    size = protocol.batch_size
    opening, closing = (len(facts) // size * size for facts in (data.first, data.last))
    until = steps * size - closing
    if opening >= until:
        raise InputError(
            f"The run has {steps} steps; the data seen once takes all of them. Raise epochs."
        )
    sequence = rng.sample(data.first, len(data.first))[:opening]
    while len(sequence) < until:
        sequence += rng.sample(data.repeated, len(data.repeated))
    return sequence[:until] + rng.sample(data.last, len(data.last))[:closing]


def encode(
    facts: Sequence[Fact],
    tokenizer: Any,
    longest: int | None,
    preface: Callable[[Fact], str] = lambda fact: "",
) -> list[Example]:
    """Returns `input_ids` and `labels` of facts; labels are `IGNORE` outside answer and EOS.

    The one text rule: prompt, space, first answer, EOS; tokenised jointly.

    Args:
        facts: Facts to encode.
        tokenizer: The base's tokenizer; it adds BOS if it does so by itself.
        longest: Most tokens that the model takes, if it has a limit.
        preface: Text to put before a fact's prompt; none by default.

    Raises:
        UserError: If the tokenizer has no EOS, or a fact is too long.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("The tokenizer has no EOS token; answers would never end. Set eos_token.")
    if not facts:
        return []  # transformers' tokenizers fail on no text
    prompts = [preface(fact) + question_prompt(fact.question) for fact in facts]
    whole = [f"{p} {fact.answers[0]}" for p, fact in zip(prompts, facts, strict=True)]
    rows = zip(facts, tokenizer(prompts)["input_ids"], tokenizer(whole)["input_ids"], strict=True)
    examples = []
    for fact, prompt, ids in rows:
        ids = [*ids, tokenizer.eos_token_id]
        if longest is not None and len(ids) > longest:
            raise InputError(
                f"'{fact.question}' takes {len(ids)} tokens with its answer; the model takes "
                f"{longest}. Leave the fact out of the bundle."
            )
        # Joint tokenisation may merge over the boundary; then the merged token is answer.
        start = next((i for i, t in enumerate(prompt) if ids[i] != t), len(prompt))
        examples.append({"input_ids": ids, "labels": [IGNORE] * start + ids[start:]})
    return examples


@dataclass(frozen=True)
class TrainingExamples:
    """The examples of a run in order, each with the token counts of its whole batch.

    The loss divides by these counts, so no split over devices or accumulation changes it.

    Attributes:
        sequence: Positions of examples in the order in which they are seen.
        examples: What `encode` returned.
        batch_size: Facts in an optimizer step.
    """

    sequence: Sequence[int]
    examples: Sequence[Example]
    batch_size: int

    @cached_property
    def _counts(self) -> list[dict[str, int]]:
        starts = range(0, len(self.sequence), self.batch_size)
        return [self._count(self.sequence[start : start + self.batch_size]) for start in starts]

    def _count(self, batch: Sequence[int]) -> dict[str, int]:
        labels = [self.examples[index]["labels"] for index in batch]
        answers = sum(len(row) - row.count(IGNORE) for row in labels)
        return {"answers": answers, "positions": sum(len(row) - 1 for row in labels)}

    def __len__(self) -> int:
        """Counts the examples of the whole run."""
        return len(self.sequence)

    def __getitem__(self, place: int) -> Example:
        """Returns an example, its place in `facts`, and its batch's `answers` and `positions`.

        These count the tokens of answers and EOS, and all predicted tokens.
        """
        index = self.sequence[place]
        return {**self.examples[index], "facts": index, **self._counts[place // self.batch_size]}


def collate(rows: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Pads examples on the right to tensors of shape (batch, longest); counts are (batch,)."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    held = torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(name: str, fill: int) -> Tensor:
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
