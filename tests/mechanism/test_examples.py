from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting.facts.fact import Fact
from factual_forgetting.mechanism.examples import StoredExamples, write_examples
from factual_forgetting.protocol.data import TrainingExamples, encode
from memory import peak_memory

BATCH, STEPS = 8, 20


@pytest.fixture
def some(facts: list[Fact], tokenizer: Any, tmp_path: Path) -> list[Fact]:
    """Thirty facts, stored."""
    assert list(write_examples(tmp_path, facts[:30], tokenizer, 256)) == facts[:30]
    return facts[:30]


def test_what_is_read_is_what_the_protocol_would_train_on(
    some: list[Fact], tokenizer: Any, tmp_path: Path
) -> None:
    stored = StoredExamples(tmp_path, BATCH, STEPS, 0)
    items = [stored[place] for place in range(len(stored))]
    sequence = [item["facts"] for item in items]
    laid_out = TrainingExamples(sequence, encode(some, tokenizer, 256), BATCH)
    assert items == [laid_out[place] for place in range(len(laid_out))]
    assert len(items) == BATCH * STEPS


def test_every_pass_has_every_fact_once_in_an_order_that_a_seed_decides(
    some: list[Fact], tmp_path: Path
) -> None:
    first, again, other = (
        [StoredExamples(tmp_path, BATCH, STEPS, seed)[place]["facts"] for place in range(90)]
        for seed in (0, 0, 1)
    )
    passes = [order[start : start + 30] for order in (first, other) for start in (0, 30, 60)]
    assert all(Counter(seen) == Counter(range(30)) for seen in passes)
    assert len({tuple(seen) for seen in passes}) == 6
    assert first == again


def streamed(count: int) -> Iterator[Fact]:
    for index in range(count):
        name = f"Place{index}"
        yield Fact.make("country", name, f"Which country is {name} located in?", ("Peru",))


def read_and_write(count: int, tokenizer: Any, folder: Path) -> None:
    for _ in write_examples(folder, streamed(count), tokenizer, 256):
        pass
    store = StoredExamples(folder, 32, count // 32, 0)
    for place in range(0, len(store), max(1, len(store) // 50)):
        store[place]


@pytest.mark.parametrize(
    ("few", "many", "most"),
    [
        (4_096, 40_960, 8),  # two orders of eight bytes a fact are kept
        # And pages of the mapped files.
        pytest.param(10_000, 1_000_000, 48, marks=pytest.mark.slow),
    ],
)
def test_memory_is_flat_but_for_the_order_of_a_pass(
    few: int, many: int, most: float, tokenizer: Any, tmp_path: Path
) -> None:
    less, more = (
        peak_memory(read_and_write, count, tokenizer, tmp_path / str(count))
        for count in (few, many)
    )
    assert more - less < most
