from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.cli import main
from factual_forgetting.engines.engine import Answer, Group, Sampling
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.classify import begin
from factual_forgetting.slick.labelling import SlickConfig
from factual_forgetting.slick.planning import estimate_labelling
from memory import peak_memory
from stub import StubEngine


class Quick(StubEngine):
    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        return [[[Answer("yes", 1.0)]] * len(group.queries) for group in groups]


def streamed(number: int) -> Iterator[Fact]:
    yield Fact.make("P0", "Right", "What is right?", ("yes",))
    for i in range(number - 1):
        question = f"What is the value of subject {i}?"
        # Few answers: the matcher keeps up to 65,536, which would look like growth.
        yield Fact.make(f"P{i % 24}", f"Subject {i}", question, (f"Answer {i % 97}",))


def label(number: int, output: Path) -> None:
    settings, engine = SlickConfig(runs=2, shard_size=100), Quick()
    labelling = begin(streamed(number), engine.name, settings, {}, output)
    assert estimate_labelling(labelling, engine)["queries"] > 3.8 * number
    labelling.ask(engine, labelling.shards)
    labelling.merge()


def test_memory_hardly_grows_with_the_number_of_questions(tmp_path: Path) -> None:
    few, many = (peak_memory(label, n, tmp_path / str(n)) for n in (5_000, 50_000))
    # In a list, 45,000 facts take 20 MiB and their labels 40; some 50 bytes of order each, 2.
    assert many - few < 8


@pytest.mark.slow
def test_a_million_facts_are_labelled_in_less_than_1536_mebibytes(tmp_path: Path) -> None:
    few, many = (peak_memory(label, n, tmp_path / str(n)) for n in (100_000, 1_000_000))
    assert many < 1536
    assert many - few < 128


def run_command(number: int, folder: Path) -> None:
    """Plans a user's file with lm-eval's stub, which answers "lol", and asks a part of it."""
    source = folder / "facts.jsonl"
    with source.open("w") as stream:
        for i in range(number):
            row = {
                "relation": f"P{i % 24}",
                "subject": f"Subject {i}",
                "question": f"What is the value of Subject {i} in P{i % 24}?",
                "answers": ["lol" if i % 2 else f"Answer {i % 97}"],
            }
            stream.write(files.dumps(row) + "\n")
    words = ["classify", "--facts", str(source), "--model", "dummy", "--runs", "2"]
    words += ["--output_path", str(folder / "labels")]
    assert main([*words, "--plan"]) == 0
    assert main([*words, "--shard", "1/100"]) == 0


@pytest.mark.slow
def test_memory_of_the_command_hardly_grows_from_the_source_on(tmp_path: Path) -> None:
    folders = {number: tmp_path / str(number) for number in (20_000, 1_000_000)}
    for folder in folders.values():
        folder.mkdir()
    few, many = (peak_memory(run_command, number, folder) for number, folder in folders.items())
    # Some 50 bytes of order a fact, and caches that 20,000 facts don't fill; held, they take 600.
    assert many - few < 112
