"""An engine that knows each fact with a probability of its own, and counts what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.engines.engine import Answer, Engine, Group, Query, Sampling
from factual_forgetting.facts.fact import Fact, stable_fraction
from factual_forgetting.slick.classify import CLASSIFY_LOG

BASE: dict[str, Any] = {"pretrained": "stub"}


def contents(output: Path) -> dict[str, bytes]:
    """What a labelling consists of, without its log, which tells times."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name != CLASSIFY_LOG}


def exemplars(output: Path) -> list[dict[str, Any]]:
    return [fact for row in files.read_jsonl(output / "exemplars.jsonl") for fact in row["facts"]]


def many_facts(relations: int = 2, subjects: int = 200) -> list[Fact]:
    return [
        Fact.make(f"R{relation}", f"S{number}", f"What of S{number} in R{relation}?", ("yes",))
        for relation in range(relations)
        for number in range(subjects)
    ]


class StubEngine(Engine):
    """A third is known for sure, a third never, a third by chance of the prompt."""

    name = "stub"

    def __init__(self, on_call: Callable[[int], None] = lambda call: None) -> None:
        self.asked: list[str] = []
        self.calls = 0
        self._on_call = on_call

    def chance(self, query: Query) -> float:
        fate = stable_fraction("fate", query.text.split("Q: ")[-1])
        return 1.0 if fate < 1 / 3 else 0.0 if fate < 2 / 3 else fate

    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        if sampling:
            seeds = [f"{sampling.seed}-{number}" for number in range(sampling.samples)]
            return [[[self._drawn(q, seed) for seed in seeds] for q in g.queries] for g in groups]
        self.calls += 1
        self._on_call(self.calls)
        self.asked += [group.prefix + query.text for group in groups for query in group.queries]
        return [[[self._answer(query, g.prefix)] for query in g.queries] for g in groups]

    def _answer(self, query: Query, seed: str) -> Answer:
        value = stable_fraction(query.text, seed)
        return Answer("yes" if value < self.chance(query) else "no", margin=value)

    def _drawn(self, query: Query, seed: str) -> Answer:
        known = stable_fraction("fate", query.text.split("Q: ")[-1]) % 0.02 < 0.01
        return Answer("yes" if known and stable_fraction(query.text, seed) < 0.3 else "no")
