"""What is asked: the facts in a fixed random order, and the prompts around them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from factual_forgetting import files
from factual_forgetting.config import Config
from factual_forgetting.engines.engine import Group, Query
from factual_forgetting.engines.loading import load_tokenizer
from factual_forgetting.engines.prompts import MAX_NEW_TOKENS, exemplar_prefix, question_prompt
from factual_forgetting.errors import InputError, reason_of
from factual_forgetting.facts.account import by_relation
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import AnswerKey
from factual_forgetting.scoring.judging import judge
from factual_forgetting.slick.configurations import Configurations, draw_configurations
from factual_forgetting.slick.labelling import MOST_RUNS
from factual_forgetting.slick.shards import lot_of
from factual_forgetting.terminal import note

FEW_SHOT, CHATTING = "few_shot", "chat"
# The prompt that models are compared in; the choosing ones are numbered.
COMPARED = "compared"
_CHAT_TOKENS = 32
# Templates may write today's date, or ask for a chain of thought that no short answer has.
_PINNED = {"date_string": "26 Jul 2024", "enable_thinking": False}
_Render = Callable[[Sequence[Fact], str], str]


class CompareConfig(Config):
    """What decides a comparison, beside facts and models.

    Attributes:
        style: The prompt that models are compared in: with exemplars, the question alone, or as
            turns of a chat, exemplars included.
        runs: Prompts in each of which the base must be right to know a fact.
        shots: Exemplars in each.
        seed: Decides which facts become exemplars, and the order of the questions.
    """

    style: Literal["few_shot", "zero_shot", "chat"] = "few_shot"
    runs: int = Field(default=5, ge=1, le=MOST_RUNS)
    shots: int = Field(default=3, ge=1, le=MOST_RUNS)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a comparison.

    Attributes:
        order: The facts to ask. Any beginning has all relations in the shares that they have in
            the whole, and is a random sample of each.
        drawn: Exemplars by relation, of facts that nobody is asked.
        sha256: Hash of the facts as given.
    """

    settings: CompareConfig
    order: list[Fact]
    drawn: dict[str, Configurations]
    sha256: str

    def exemplars(self, relation: str, prompt: int | str) -> tuple[Fact, ...]:
        """Returns the exemplars of a relation in a choosing prompt or in the compared one."""
        if isinstance(prompt, int):
            return self.drawn[relation].labelling[prompt]
        return () if self.settings.style == "zero_shot" else self.drawn[relation].fresh


def read_questions(facts: Iterable[Fact], settings: CompareConfig) -> Questions:
    """Draws exemplars and orders the other facts.

    Raises:
        UserError: If no relation can spare exemplars, or nothing is left to ask.
    """
    given, digest = list(facts), hashlib.sha256()
    for fact in given:
        digest.update((files.dumps(fact.row()) + "\n").encode())
    drawn = draw_configurations(given, settings.runs, settings.shots, settings.seed)
    taken = {key for configurations in drawn.values() for key in configurations.ids}
    places: dict[Fact, float] = {}
    for relation, group in by_relation(given).items():
        asked = [fact for fact in group if fact.id not in taken]
        if relation not in drawn:
            told = f"relation {relation} ({len(asked):,} facts), too small to spare exemplars"
            note(f"left out: {told}")
            continue
        shuffled = sorted(asked, key=lambda fact: lot_of(fact, settings.seed))
        places |= {fact: (n + 0.5) / len(asked) for n, fact in enumerate(shuffled)}
    if not places:
        raise InputError("No question is left beside the exemplars. Give more facts.")
    order = sorted(places, key=lambda fact: (places[fact], lot_of(fact, settings.seed)))
    return Questions(settings, order, drawn, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Manner:
    """How one model is asked, and when its answer is right.

    Attributes:
        chat: Whether answers are sentences of a chat model.
        template: Sets exemplars and a question as turns of a chat; None for the plain text.
    """

    chat: bool = False
    template: _Render | None = None

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""
        return _CHAT_TOKENS if self.chat else MAX_NEW_TOKENS

    def group(self, exemplars: Sequence[Fact], facts: Sequence[Fact], likely: set[str]) -> Group:
        """Returns the prompts of facts with exemplars in common."""
        asked = question_prompt if self.template is None else self._framed(exemplars)
        queries = [Query(asked(f.question), f.accepted, f.id in likely) for f in facts]
        return Group("" if self.template else exemplar_prefix(exemplars), queries)

    def _framed(self, exemplars: Sequence[Fact]) -> Callable[[str], str]:
        template = self.template
        return lambda question: template(exemplars, question) if template else question

    def right(self, fact: Fact, text: str) -> bool:
        """Tells whether an answer to a fact's question is right."""
        if not self.chat:
            return AnswerKey(fact.accepted).accepts(text)
        return judge(text, fact.answers, fact.aliases, fact.subject, chat=True).correct


def chat_template(folder: Path) -> _Render | None:
    """Returns what sets turns by the chat template of a tokenizer; None if it has none.

    Raises:
        UserError: When a template is used that fails on a user's and an assistant's turns.
    """
    tokenizer = load_tokenizer(folder)
    if not getattr(tokenizer, "chat_template", None):
        return None
    begun = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    twice = tokenizer.bos_token if begun else ""  # engines add it to every text

    def render(exemplars: Sequence[Fact], question: str) -> str:
        pairs = [(e.question, e.answers[0]) for e in exemplars]
        turns = [turn for asked, told in pairs for turn in (_turn("user", asked), _answer(told))]
        turns.append(_turn("user", question))
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **_PINNED
            )
        except Exception as error:  # a template is a program, and raises what it likes
            told = f"The chat template in {folder} fails ({reason_of(error)})"
            raise InputError(f"{told}. Leave out --chat, or mend the template.") from None
        return str(text).removeprefix(twice)

    return render


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _answer(content: str) -> dict[str, str]:
    return _turn("assistant", content)
