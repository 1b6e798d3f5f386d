"""Asks one shard in rounds, and keeps what was answered in its journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from factual_forgetting.engines import prompts
from factual_forgetting.engines.engine import Engine, Group, Query, Sampling
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import AnswerKey
from factual_forgetting.slick.configurations import Configurations
from factual_forgetting.slick.labelling import (
    FRESH,
    NOT_ASKED,
    ZERO_SHOT,
    Label,
    SlickConfig,
    category,
)
from factual_forgetting.slick.shards import Shard, append, read_journal

_GREEDY, _SCORING, _SAMPLED = "greedy", "scoring", "sampled"
_ROUND_ENDS = (2, 4, 8)


@dataclass(slots=True)
class _Asked:
    """One question, and what was answered so far."""

    fact: Fact
    key: AnswerKey
    correct: str = ""
    margin: float | None = None
    base: dict[str, bool] = field(default_factory=dict)
    sampled: tuple[int, int] | None = None

    @property
    def mixed(self) -> bool:
        return "0" in self.correct and "1" in self.correct

    def label(self, runs: int) -> Label:
        correct = self.correct.ljust(runs, NOT_ASKED)
        named = category(self.correct, self.sampled)
        return Label(self.fact, correct, named, self.base, self.margin, self.sampled)


@dataclass(frozen=True, slots=True)
class _Round:
    """Runs that are asked together: numbers of labelling runs, or the scoring prompts."""

    kind: str
    runs: tuple[int | str, ...]


def rounds(settings: SlickConfig) -> list[_Round]:
    """Returns the rounds of a shard; between rounds, questions may retire."""
    bounds = [0, *(end for end in _ROUND_ENDS if end < settings.runs), settings.runs]
    planned = [_Round(_GREEDY, tuple(range(start, end))) for start, end in pairwise(bounds)]
    planned.append(_Round(_SCORING, (FRESH, ZERO_SHOT)))
    if settings.samples:
        planned.append(_Round(_SAMPLED, tuple(range(settings.runs))))
    return planned


class ShardRun:
    """The labelling of one shard, as far as its journal tells."""

    def __init__(self, shard: Shard, parts: Path, settings: SlickConfig) -> None:
        """Reads the shard's questions and the finished rounds."""
        self._settings, self._path = settings, shard.journal(parts)
        self.questions = [_Asked(fact, AnswerKey(fact.accepted)) for fact in shard.facts(parts)]
        self._rounds = rounds(settings)
        self._done = 0
        for row in read_journal(self._path):
            self._take(row)

    @property
    def complete(self) -> bool:
        """Whether every round is finished."""
        return self._done == len(self._rounds)

    @property
    def answered(self) -> int:
        """Questions times runs in the finished rounds, retired ones included."""
        return len(self.questions) * sum(len(r.runs) for r in self._rounds[: self._done])

    def labels(self) -> list[Label]:
        """Returns the labels of a complete shard, in the order of its questions."""
        return [question.label(self._settings.runs) for question in self.questions]

    def first_groups(self, drawn: Configurations, most: int) -> list[Group]:
        """Returns what the first round asks of the first questions, `most` of them."""
        return [self._group(drawn, run, self.questions[:most]) for run in self._rounds[0].runs]

    def ask(self, engine: Engine, drawn: Configurations) -> Iterator[tuple[int, int]]:
        """Asks what no finished round answers.

        Yields:
            After each round, questions times runs, and how many the engine was asked.
        """
        while not self.complete:
            planned = self._rounds[self._done]
            alive = [i for i, q in enumerate(self.questions) if self._asks(planned.kind, q)]
            found = self._answer(engine, drawn, planned, alive)
            append(self._path, {"round": self._done, "asked": alive, **found})
            self._take({"round": self._done, "asked": alive, **found})
            yield len(self.questions) * len(planned.runs), len(alive) * len(planned.runs)

    def _asks(self, kind: str, question: _Asked) -> bool:
        if kind == _SAMPLED:
            return "1" not in question.correct
        return not (self._settings.retire and question.mixed)

    def _answer(
        self, engine: Engine, drawn: Configurations, planned: _Round, alive: list[int]
    ) -> dict[str, Any]:
        asked = [self.questions[i] for i in alive]
        groups = [self._group(drawn, run, asked) for run in planned.runs] if asked else []
        most = self._settings.max_new_tokens
        if planned.kind == _SAMPLED:
            counts = [0] * len(asked)
            for run, group in zip(planned.runs, groups, strict=True):
                samples = engine.sample([group], most, self._sampling(int(run)))[0]
                for i, drawn_ones in enumerate(samples):
                    counts[i] += sum(asked[i].key.accepts(answer.text) for answer in drawn_ones)
            return {"right": counts}
        answers = engine.answer(groups, most, verdict_only=True)
        columns = list(zip(*answers, strict=True))
        right = [
            "".join("01"[question.key.accepts(answer.text)] for answer in column)
            for question, column in zip(asked, columns, strict=True)
        ]
        margins = [_least([answer.margin for answer in column]) for column in columns]
        return {"correct": right, "margins": margins}

    def _group(self, drawn: Configurations, run: int | str, asked: Sequence[_Asked]) -> Group:
        """The questions of one run; in sampled and scoring rounds exemplars are shared."""
        queries = [
            Query(prompts.question_prompt(q.fact.question), q.fact.accepted, q.correct[-1:] == "1")
            for q in asked
        ]
        if run == ZERO_SHOT:
            return Group("", queries)
        if run == FRESH:
            return Group(prompts.exemplar_prefix(drawn.fresh), queries)
        number = int(run)
        if self._settings.exemplars == "relation":
            return Group(prompts.exemplar_prefix(drawn.labelling[number]), queries)
        heads = [drawn.for_question(q.fact, number, self._settings.seed) for q in asked]
        return Group(
            "",
            [
                Query(prompts.exemplar_prefix(head) + query.text, query.accepted, query.likely)
                for head, query in zip(heads, queries, strict=True)
            ],
        )

    def _sampling(self, run: int) -> Sampling:
        s = self._settings
        return Sampling(s.samples, s.temperature, s.top_k, f"{s.seed}-{run}")

    def _take(self, row: dict[str, Any]) -> None:
        """Adds a finished round to what is known of its questions."""
        planned = self._rounds[row["round"]]
        for place, index in enumerate(row["asked"]):
            question = self.questions[index]
            if planned.kind == _SAMPLED:
                total = self._settings.samples * len(planned.runs)
                question.sampled = (row["right"][place], total)
            elif planned.kind == _SCORING:
                outcomes = (mark == "1" for mark in row["correct"][place])
                question.base = dict(zip((FRESH, ZERO_SHOT), outcomes, strict=True))
            else:
                first = not question.correct
                question.correct += row["correct"][place]
                margins = [row["margins"][place], *([] if first else [question.margin])]
                question.margin = _least(margins)
        self._done += 1


def _least(margins: Sequence[float | None]) -> float | None:
    known = [margin for margin in margins if margin is not None]
    return min(known) if len(known) == len(margins) else None
