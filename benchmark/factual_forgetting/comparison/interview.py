"""Asks one model: it is opened when something is left to ask, and closed before the next.

What was answered stands in a journal of its own, so that a comparison resumes, grows by portions,
and takes one more checkpoint without asking the others again.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.comparison.contestants import Contestant
from factual_forgetting.comparison.questions import (
    CHATTING,
    COMPARED,
    Manner,
    Questions,
    chat_template,
)
from factual_forgetting.engines.engine import Answer, Engine
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.shards import append, read_journal

_PIECE = 1024
_Prompt = int | str


class Opening(NamedTuple):
    """How engines are opened: as `open_engine` takes it."""

    choice: str = "auto"
    batch_size: str = "auto"
    device: str | None = None


class Reply(NamedTuple):
    """An answer as it is kept.

    Attributes:
        margin: Smallest gap between the two highest logits; None where logits aren't seen.
        text: Whole in the compared prompt; elsewhere it may be cut once it can only be wrong.
    """

    right: bool
    margin: float | None
    text: str


class Interview:
    """The questions to one model, and its replies so far."""

    def __init__(
        self, contestant: Contestant, questions: Questions, opening: Opening, folder: Path
    ) -> None:
        """Reads what the model has answered in `folder`.

        Raises:
            UserError: If its journal is damaged, or a chat is asked for of a server.
        """
        self.contestant, self._questions, self._opening = contestant, questions, opening
        self.manner = _manner(contestant, questions.settings.style)
        self._engine: Engine | None = None
        self._replies: dict[_Prompt, dict[str, Reply]] = {}
        asked = self.manner.template and self.manner.template(questions.order[:1], "Who?")
        identity = files.sha256_json([contestant.identity, asked])
        self._journal = folder / f"{identity[:16]}.jsonl"
        try:
            for row in read_journal(self._journal):
                self._take(row)
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self._journal} is damaged. Remove it, and run again.") from None

    def ask(self, prompt: _Prompt, facts: Sequence[Fact]) -> dict[str, Reply]:
        """Asks facts in a prompt, unless they were asked.

        Args:
            prompt: Number of a choosing prompt, or `COMPARED`.
            facts: What to ask.

        Returns:
            Replies to all facts that were ever asked in it, by the fact's id; it grows.
        """
        known = self._replies.setdefault(prompt, {})
        missing = [fact for fact in facts if fact.id not in known]
        named = prompt if isinstance(prompt, str) else f"prompt {prompt + 1}"
        with tqdm(
            total=len(missing), desc=f"{self.contestant.name}, {named}", disable=not missing
        ) as bar:
            for piece in _pieces(missing):
                row = self._answer(prompt, piece)
                append(self._journal, row)
                self._take(row)
                bar.update(len(piece))
        return known

    def close(self) -> None:
        """Lets go of the model: the next may need its memory."""
        self._engine = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answer(self, prompt: _Prompt, facts: Sequence[Fact]) -> dict[str, Any]:
        earlier = self._replies.get(prompt - 1, {}) if isinstance(prompt, int) else {}
        likely = {
            f.id for f in facts if prompt == COMPARED or (f.id in earlier and earlier[f.id][0])
        }
        groups = [
            self.manner.group(self._questions.exemplars(relation, prompt), list(same), likely)
            for relation, same in groupby(facts, key=lambda fact: fact.relation)
        ]
        brief = prompt != COMPARED and not self.manner.chat
        answers = self._open().answer(groups, self.manner.max_new_tokens, verdict_only=brief)
        flat: list[Answer] = [answer for group in answers for answer in group]
        right = (self.manner.right(f, answer.text) for f, answer in zip(facts, flat, strict=True))
        return {
            "prompt": prompt,
            "ids": [fact.id for fact in facts],
            "right": "".join("01"[told] for told in right),
            "margins": [answer.margin for answer in flat],
            "texts": [answer.text for answer in flat],
        }

    def _open(self) -> Engine:
        if self._engine is None:
            one, how = self.contestant, self._opening
            self._engine = open_engine(
                how.choice, one.model, one.arguments, how.batch_size, how.device
            )
        return self._engine

    def _take(self, row: dict[str, Any]) -> None:
        known = self._replies.setdefault(row["prompt"], {})
        told = zip(row["ids"], row["right"], row["margins"], row["texts"], strict=True)
        known.update((key, Reply(mark == "1", margin, text)) for key, mark, margin, text in told)


def _pieces(facts: Sequence[Fact]) -> Iterator[list[Fact]]:
    """Cuts facts into what is answered at once, those of a relation together."""
    ordered = sorted(facts, key=lambda fact: fact.relation)
    for start in range(0, len(ordered), _PIECE):
        yield ordered[start : start + _PIECE]


def _manner(contestant: Contestant, style: str) -> Manner:
    if style != CHATTING:
        return Manner()
    if contestant.reads is None:
        raise InputError(
            f"{contestant.name} is behind a server, which has its chat template. Give its files "
            "with --model hf or vllm, or leave out --chat."
        )
    return Manner(chat=True, template=chat_template(contestant.reads))
