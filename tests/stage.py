"""Stubs of models: what each knows of invented facts, and how often it is asked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from factual_forgetting.comparison.contestants import Contestant
from factual_forgetting.comparison.questions import CompareConfig, Questions, read_questions
from factual_forgetting.engines.engine import Answer, Engine, Group, Sampling
from factual_forgetting.facts.fact import Fact, stable_fraction


def some_facts(subjects: int = 120, relations: int = 2) -> list[Fact]:
    return [
        Fact.make(
            f"R{relation}", f"S{number}", f"What of S{number} in R{relation}?", ("yes",),
            popularity=number if relation else None,
        )
        for relation in range(relations)
        for number in range(subjects)
    ]  # fmt: skip


class Knowing(Engine):
    """Knows half the facts for sure, a quarter by chance of the prompt; forgets a share of all."""

    name = "knowing"

    def __init__(self, forgets: float, wrong: str, on_call: Callable[[], None]) -> None:
        self.forgets, self.wrong, self.on_call = forgets, wrong, on_call
        self.asked: list[str] = []

    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        self.on_call()
        prompts = [[group.prefix + query.text for query in group.queries] for group in groups]
        self.asked += [prompt for group in prompts for prompt in group]
        return [[[self._answer(prompt)] for prompt in group] for group in prompts]

    def _answer(self, prompt: str) -> Answer:
        question = prompt.split("Q: ")[-1]
        fate = stable_fraction("fate", question)
        chance = 1.0 if fate < 0.5 else 0.0 if fate > 0.75 else 0.5
        right = stable_fraction(prompt) < chance and stable_fraction("f", question) >= self.forgets
        return Answer("yes" if right else self.wrong, margin=fate)


class Stage:
    """Opens stubs in place of models, one at a time."""

    def __init__(self, monkeypatch: Any, wrong: str = "no") -> None:
        self.opened: list[str] = []
        self.asked: dict[str, list[str]] = {}
        self.calls = 0
        self.stop_at: int | None = None
        self._wrong = wrong
        self._last: weakref.ref[Engine] | None = None
        monkeypatch.setattr("factual_forgetting.comparison.interview.open_engine", self._open)

    def _open(self, choice: str, model: str, arguments: dict[str, Any], *rest: Any) -> Engine:
        assert self._last is None or self._last() is None, "two models in memory"
        engine = Knowing(arguments["forgets"], self._wrong, self._called)
        self.opened.append(arguments["pretrained"])
        self.asked.setdefault(arguments["pretrained"], [])
        engine.asked = self.asked[arguments["pretrained"]]
        self._last = weakref.ref(engine)
        return engine

    def _called(self) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt


def models(*forgets: float) -> list[Contestant]:
    """A base that forgets nothing, and checkpoints."""
    named = {"base": 0.0, **{f"tuned-{share}": share for share in forgets}}
    return [
        Contestant(
            name,
            "hf",
            {"pretrained": name, "forgets": share},
            {"model": "hf", "weights_sha256": f"{share}", "tokenizer_sha256": "t"},
            None,
            None,
        )
        for name, share in named.items()
    ]


def questions(facts: Sequence[Fact], **settings: Any) -> Questions:
    return read_questions(facts, CompareConfig(**settings))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
