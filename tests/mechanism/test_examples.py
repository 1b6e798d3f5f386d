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


def stored(facts: list[Fact], tokenizer: Any, folder: Path, seed: int = 0) -> StoredExamples:
    assert list(write_examples(folder, facts, tokenizer, 256)) == facts
    return StoredExamples(folder, BATCH, STEPS, seed)


def test_what_is_read_is_what_the_protocol_would_train_on(
    facts: list[Fact], tokenizer: Any, tmp_path: Path
) -> None:
    store = stored(facts[:30], tokenizer, tmp_path)
    items = [store[place] for place in range(len(store))]
    examples = encode(facts[:30], tokenizer, 256)
    laid_out = TrainingExamples([item["facts"] for item in items], examples, BATCH)
    assert items == [laid_out[place] for place in range(len(laid_out))]
    assert len(items) == BATCH * STEPS


def test_every_pass_has_every_fact_once_in_another_order(
    facts: list[Fact], tokenizer: Any, tmp_path: Path
) -> None:
    store = stored(facts[:30], tokenizer, tmp_path)
    passes = [[store[p]["facts"] for p in range(start, start + 30)] for start in (0, 30, 60)]
    assert all(Counter(seen) == Counter(range(30)) for seen in passes)
    assert len({tuple(seen) for seen in passes}) == 3


def test_a_seed_decides_the_order(facts: list[Fact], tokenizer: Any, tmp_path: Path) -> None:
    stored(facts[:30], tokenizer, tmp_path)
    first, again, other = (
        [StoredExamples(tmp_path, BATCH, STEPS, seed)[p]["facts"] for p in range(30)]
        for seed in (0, 0, 1)
    )
    assert first == again != other


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


def test_memory_is_flat_but_for_the_order_of_a_pass(tokenizer: Any, tmp_path: Path) -> None:
    few, many = (
        peak_memory(read_and_write, n, tokenizer, tmp_path / str(n)) for n in (4_096, 40_960)
    )
    assert many - few < 8  # two orders of eight bytes a fact are kept


@pytest.mark.slow
def test_memory_is_flat_for_a_million_facts(tokenizer: Any, tmp_path: Path) -> None:
    few, many = (
        peak_memory(read_and_write, n, tokenizer, tmp_path / str(n)) for n in (10_000, 1_000_000)
    )
    # Two orders of eight bytes a fact, and pages of the mapped files.
    assert many - few < 48
