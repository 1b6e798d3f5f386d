"""The one interface of all engines, questions in and answers out, and what several of them need."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from factual_forgetting.errors import InputError, UserError
from factual_forgetting.facts.fact import stable_hash


@dataclass(frozen=True, slots=True)
class Query:
    """One question to a model.

    Attributes:
        text: The rest of the prompt, after the group's prefix.
        accepted: Accepted answers.
        likely: Whether one of them is expected. Both may save time, and never change a verdict.
    """

    text: str
    accepted: tuple[str, ...]
    likely: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """Questions whose prompts begin with the same text, which may be empty."""

    prefix: str
    queries: Sequence[Query]


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer.

    Attributes:
        text: The generated text up to the first newline, stripped.
        margin: Smallest gap between the two highest logits over the generated tokens; None
            where the engine doesn't see logits, or drew at random.
        truncated: Whether generation ended early, because no accepted answer was in reach.
    """

    text: str
    margin: float | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn at random.

    Attributes:
        samples: Answers a question.
        temperature: Divides the logits.
        top_k: Tokens to draw from.
        seed: Decides the draws, whatever the batch.
    """

    samples: int
    temperature: float
    top_k: int
    seed: str


class Engine(ABC):
    """Answers questions until a newline or the end of the sequence.

    Attributes:
        name: What a labelling says that it was made with.
        batch_size: Questions that are computed together, where the engine decides that.
    """

    name: str
    batch_size: int | None = None

    def answer(
        self, groups: Sequence[Group], max_new_tokens: int, *, verdict_only: bool = False
    ) -> list[list[Answer]]:
        """Generates one greedy answer a question, in one list a group.

        Args:
            groups: Questions by shared prefix.
            max_new_tokens: Most tokens to generate.
            verdict_only: Whether an answer may be cut short once it can only be wrong.
        """
        found = self._generate(groups, max_new_tokens, verdict_only, None)
        return [[answers[0] for answers in group] for group in found]

    def sample(
        self, groups: Sequence[Group], max_new_tokens: int, sampling: Sampling
    ) -> list[list[list[Answer]]]:
        """Draws answers, `[group][question][sample]`; what can only be wrong may be cut short."""
        return self._generate(groups, max_new_tokens, True, sampling)

    def lengths(self, texts: Sequence[str]) -> list[int] | None:
        """Returns the number of tokens of texts; None where the engine doesn't tokenise."""
        return None

    @abstractmethod
    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        """Does what `sample` does, the one thing that an engine has to do.

        Without `sampling` it gives one greedy answer a question, of `most` tokens at most.
        """

    @contextmanager
    def _halving(self, size: int) -> Iterator[None]:
        """Halves the batch when memory runs out, so that the same work can be tried again.

        Args:
            size: Questions in the batch that is tried; without memory even for 1, it is an error.
        """
        try:
            yield
            return
        except (MemoryError, RuntimeError) as error:
            told = str(error).lower()
            lacking = "out of memory" in told or "allocate memory" in told
            if not (lacking or isinstance(error, MemoryError)):
                raise
            if size == 1:
                raise UserError(
                    "Memory runs out with a single question. Use a smaller dtype (dtype=bfloat16 "
                    "in --model_args), fewer --shots, or a larger device."
                ) from None
        # Only here is the error gone, whose frames hold what the batch computed.
        self.batch_size = size // 2
        gc.collect()

    @staticmethod
    def _require_room(tokens: int, context: float) -> None:
        """Checks that a prompt and its longest answer, in tokens, fit into a model's context."""
        if tokens > context:
            raise InputError(
                f"A prompt with its answer takes {tokens} tokens, and the model's context holds "
                f"{context}. Lower --shots, or leave the relation out with --relations."
            )


def seed_number(seed: str) -> int:
    """Turns a seed into the number that generators of other libraries take."""
    return int(stable_hash("sample", seed)[:8], 16)
