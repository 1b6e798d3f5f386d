"""Asks one shard in rounds, and keeps what was answered in its journal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from factual_forgetting.engines.engine import Engine, Group, Query, Sampling
from factual_forgetting.engines.prompts import exemplar_prefix, question_prompt
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import AnswerKey
from factual_forgetting.slick import labelling as slick
from factual_forgetting.slick.configurations import Configurations
from factual_forgetting.slick.labelling import Category, Label, SlickConfig
from factual_forgetting.slick.shards import Shard, append, read_journal

_GREEDY, _SCORING, _SAMPLED = "greedy", "scoring", "sampled"
_ROUND_ENDS = (2, 4, 8)


@dataclass(slots=True)
class _Asked:
    """One question, and what was answered so far."""

    fact: Fact
    key: AnswerKey
    correct: str = ""
    margin: float | None = math.inf
    base: dict[str, bool] = field(default_factory=dict)
    sampled: tuple[int, int] | None = None

    def label(self, runs: int) -> Label:
        correct = self.correct.ljust(runs, slick.NOT_ASKED)
        category = Category.of(self.correct, self.sampled)
        return Label(self.fact, correct, category, self.base, self.margin, self.sampled)


@dataclass(frozen=True, slots=True)
class _Round:
    """Runs that are asked together: numbers of labelling runs, or the scoring prompts."""

    kind: str
    runs: tuple[int | str, ...]


def rounds(settings: SlickConfig) -> list[_Round]:
    """Returns the rounds of a shard; between rounds, questions may retire."""
    bounds = [0, *(end for end in _ROUND_ENDS if end < settings.runs), settings.runs]
    planned = [_Round(_GREEDY, tuple(range(start, end))) for start, end in pairwise(bounds)]
    planned.append(_Round(_SCORING, (slick.FRESH, slick.ZERO_SHOT)))
    if settings.samples:
        planned.append(_Round(_SAMPLED, tuple(range(settings.runs))))
    return planned


class ShardRun:
    """The labelling of one shard, as far as its journal tells."""

    def __init__(
        self, shard: Shard, parts: Path, settings: SlickConfig, drawn: Configurations
    ) -> None:
        """Reads the shard's questions and finished rounds in `parts`; `drawn` are its exemplars."""
        self._settings, self._drawn = settings, drawn
        self._journal, self._rounds, self._done = shard.journal(parts), rounds(settings), 0
        self._questions = [_Asked(fact, AnswerKey(fact.accepted)) for fact in shard.facts(parts)]
        for row in read_journal(self._journal):
            self._take(row)

    @property
    def complete(self) -> bool:
        """Whether every round is finished."""
        return self._done == len(self._rounds)

    @property
    def answered(self) -> int:
        """Questions times runs in the finished rounds, retired ones included."""
        return len(self._questions) * sum(len(r.runs) for r in self._rounds[: self._done])

    def labels(self) -> list[Label]:
        """Returns the labels of a complete shard, in the order of its questions."""
        return [
            question.label(self._settings.runs) for question in self._questions if question.correct
        ]

    @property
    def too_long(self) -> int:
        """Number of questions that were not asked, in a complete shard."""
        return sum(not question.correct for question in self._questions)

    def first_groups(self, most: int) -> list[Group]:
        """Returns what the first round asks of the first questions, `most` of them."""
        return [self._group(run, self._questions[:most]) for run in self._rounds[0].runs]

    def ask(self, engine: Engine) -> Iterator[tuple[int, int]]:
        """Asks what no finished round answers.

        Yields:
            After each round, questions times runs, and how many the engine was asked.
        """
        while not self.complete:
            planned = self._rounds[self._done]
            fits = self._fits(engine) if self._done == 0 else None
            alive = [i for i, q in enumerate(self._questions) if self._asks(planned.kind, q)]
            alive = [i for i in alive if fits is None or fits[i]]
            asked = [self._questions[i] for i in alive]
            answer = self._sample if planned.kind == _SAMPLED else self._answer
            row = {"round": self._done, "asked": alive, **answer(engine, planned, asked)}
            append(self._journal, row)
            self._take(row)
            yield len(self._questions) * len(planned.runs), len(alive) * len(planned.runs)

    def _fits(self, engine: Engine) -> list[bool] | None:
        """Tells which golds an answer has room for: no longer one can be learnt, whatever is known.

        They are counted as the base reads them; None where the engine can't tell.
        """
        prompts = [question_prompt(question.fact.question) for question in self._questions]
        golds = [f"{p} {q.fact.answers[0]}" for p, q in zip(prompts, self._questions, strict=True)]
        if (short := engine.lengths(prompts)) is None or (long := engine.lengths(golds)) is None:
            return None
        most = self._settings.max_new_tokens
        return [whole - prompt <= most for whole, prompt in zip(long, short, strict=True)]

    def _asks(self, kind: str, question: _Asked) -> bool:
        if self._done and not question.correct:
            return False  # its gold is too long
        if kind == _SAMPLED:
            return "1" not in question.correct
        retired = Category.of(question.correct) is Category.MAYBE_KNOWN
        return not (self._settings.retire and retired)

    def _answer(self, engine: Engine, planned: _Round, asked: list[_Asked]) -> dict[str, Any]:
        groups = [self._group(run, asked) for run in planned.runs] if asked else []
        answers = engine.answer(groups, self._settings.max_new_tokens, verdict_only=True)
        columns = list(zip(*answers, strict=True))
        right = [
            "".join("01"[question.key.accepts(answer.text)] for answer in column)
            for question, column in zip(asked, columns, strict=True)
        ]
        margins = [_least([answer.margin for answer in column]) for column in columns]
        return {"correct": right, "margins": margins}

    def _sample(self, engine: Engine, planned: _Round, asked: list[_Asked]) -> dict[str, Any]:
        s, right = self._settings, [0] * len(asked)
        for run in planned.runs if asked else ():
            sampling = Sampling(s.samples, s.temperature, s.top_k, f"{s.seed}-{run}")
            groups = [self._group(run, asked)]
            for place, answers in enumerate(engine.sample(groups, s.max_new_tokens, sampling)[0]):
                right[place] += sum(asked[place].key.accepts(answer.text) for answer in answers)
        return {"right": right}

    def _group(self, run: int | str, asked: Sequence[_Asked]) -> Group:
        """The questions of one run; exemplars of their own stand in their texts."""
        shared = self._drawn.fresh if run == slick.FRESH else ()
        own = isinstance(run, int) and self._settings.exemplars == "question"
        if isinstance(run, int) and not own:
            shared = self._drawn.labelling[run]
        queries = []
        for question in asked:
            fact, likely = question.fact, question.correct[-1:] == "1"
            head = self._drawn.for_question(fact, int(run), self._settings.seed) if own else ()
            text = exemplar_prefix(head) + question_prompt(fact.question)
            queries.append(Query(text, fact.accepted, likely))
        return Group(exemplar_prefix(shared), queries)

    def _take(self, row: dict[str, Any]) -> None:
        """Adds a finished round to what is known of its questions."""
        planned = self._rounds[row["round"]]
        for place, index in enumerate(row["asked"]):
            question = self._questions[index]
            if planned.kind == _SAMPLED:
                question.sampled = row["right"][place], self._settings.samples * len(planned.runs)
            elif planned.kind == _SCORING:
                outcomes = (mark == "1" for mark in row["correct"][place])
                question.base = dict(zip((slick.FRESH, slick.ZERO_SHOT), outcomes, strict=True))
            else:
                question.correct += row["correct"][place]
                question.margin = _least([question.margin, row["margins"][place]])
        self._done += 1


def _least(margins: Sequence[float | None]) -> float | None:
    known = [margin for margin in margins if margin is not None]
    return min(known) if len(known) == len(margins) else None
