"""Training facts on disk: written once as a stream, read token by token through a memory map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.data import IGNORE, Example, encode

_CHUNK = 2048
_TOKENS, _ROWS = "tokens.bin", "rows.bin"


def write_examples(
    folder: Path, facts: Iterable[Fact], tokenizer: Any, longest: int | None
) -> Iterator[Fact]:
    """Encodes facts to disk by the protocol's text rule, passing each on as it is written.

    Args:
        folder: Directory to write.
        facts: In any number.
        tokenizer: The base's.
        longest: Most tokens that the model takes, if it has a limit.

    Raises:
        UserError: As `protocol.data.encode`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stream, end = iter(facts), 0
    with (folder / _TOKENS).open("wb") as tokens, (folder / _ROWS).open("wb") as rows:
        while chunk := list(islice(stream, _CHUNK)):
            examples = encode(chunk, tokenizer, longest)
            lengths = [len(example["input_ids"]) for example in examples]
            ends = end + np.cumsum(lengths, dtype=np.int64)
            end, firsts = int(ends[-1]), ends - lengths
            answers = firsts + [example["labels"].count(IGNORE) for example in examples]
            ids = [token for example in examples for token in example["input_ids"]]
            np.asarray(ids, dtype=np.int32).tofile(tokens)
            np.column_stack([firsts, answers, ends]).tofile(rows)
            yield from chunk


class StoredExamples:
    """What `write_examples` wrote, in an order that `seed` draws anew for every pass.

    It stands in the place of `protocol.data.TrainingExamples`: an item is an example with the token
    counts of its whole optimizer step, `batch_size` facts. Its length is that of the longest run,
    of `steps` steps. Only the order of one pass is in memory.
    """

    def __init__(self, folder: Path, batch_size: int, steps: int, seed: int) -> None:
        # As plain arrays: a slice of a memmap costs ten times as much.
        self._tokens = np.asarray(np.memmap(folder / _TOKENS, dtype=np.int32, mode="r"))
        self._rows = np.asarray(np.memmap(folder / _ROWS, dtype=np.int64, mode="r")).reshape(-1, 3)
        self._batch_size, self._steps, self._seed = batch_size, steps, seed
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._counts = lru_cache(maxsize=2)(self._count)

    def __len__(self) -> int:
        return self._steps * self._batch_size

    def __getitem__(self, place: int) -> Example:
        """Returns an example with its batch's `answers` and `positions`."""
        index = self._at(place)
        first, answer, end = self._rows[index].tolist()
        ids = self._tokens[first:end].tolist()
        labels = [IGNORE] * (answer - first) + self._tokens[answer:end].tolist()
        answers, positions = self._counts(place // self._batch_size)
        counts = {"facts": index, "answers": answers, "positions": positions}
        return {"input_ids": ids, "labels": labels, **counts}

    def _at(self, place: int) -> int:
        epoch, rank = divmod(place, len(self._rows))
        return int(self._order(epoch)[rank])

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))

    def _count(self, step: int) -> tuple[int, int]:
        places = range(step * self._batch_size, (step + 1) * self._batch_size)
        first, answer, end = self._rows[[self._at(place) for place in places]].T
        return int((end - answer).sum()), int((end - first - 1).sum())
