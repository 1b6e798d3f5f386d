"""What one generated text says: right or wrong, how close, or no answer at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from factual_forgetting.facts.matching import (
    MATCHER_VERSION,
    MATCHERS,
    first_line,
    is_correct,
    normalise,
)

_ABSTENTIONS = frozenset(
    normalise(text)
    for text in "I don't know|I do not know|don't know|I'm not sure|I am not sure|not sure|unknown|"
    "no answer|I have no idea".split("|")
)
_DECLINES = re.compile(
    r"\b(dont know|do not know|not sure|not certain|no idea|not aware|unknown|cannot answer|"
    r"cant answer|unable to|not able to|cannot find|couldnt find|could not find|"
    r"dont have|do not have|no information|not familiar)\b"
)
_HEDGES = frozenset(
    "or either neither nor not never isnt wasnt arent werent doesnt didnt cannot cant".split()
)
_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_BLOCK = re.compile(r"^\s*(?:(?:[-*+>]|#{1,6})\s+)+")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_EMPHASIS = re.compile(r"[*`]+|__|\$+")
_LABEL = re.compile(r"^(?:(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is)?|a)\s*:\s*", re.I)
_FILLER = re.compile(r"^(?:sure|certainly|of course|okay|ok|great question|good question|yes)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[^a-z\s])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(.])(?:[^\W\d_]|st|ste|mt|ft|dr|mr|mrs|ms|jr|sr|inc|ltd|co|corp|bros|no|gen|lt|col|"
    r"sgt|prof|rev|hon|vs|ave|vol|op)\.$",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of one answer.

    Attributes:
        correct: Whether it is the gold or an alias of it.
        strict: Whether it is the gold as the source has it.
        f1: Token F1 against the closest accepted answer (Rajpurkar et al. 2016), in [0, 1].
        abstained: Whether it declines to answer, or is empty.
    """

    correct: bool
    strict: bool
    f1: float
    abstained: bool

    @property
    def declined(self) -> bool:
        """Whether it gives no answer; one that is right counts as given, whatever its words."""
        return self.abstained and not self.correct

    @property
    def hallucinated(self) -> bool:
        """Whether it gives a wrong answer."""
        return not self.correct and not self.abstained


def judge(
    text: str,
    golds: Sequence[str],
    aliases: Sequence[str],
    subject: str,
    *,
    chat: bool,
    matcher: str = MATCHER_VERSION,
) -> Judgement:
    """Judges a generated text.

    Args:
        text: What was generated.
        golds: Answers as the source has them.
        aliases: Other names of them.
        subject: The entity asked about; a sentence that repeats it says nothing by that.
        chat: Whether the text is a chat model's, in sentences and markdown.
        matcher: Key of `MATCHERS`.
    """
    accepted = [*golds, *aliases]
    answer = spoken(text, chat=chat)
    correct, strict = (
        _states(answer, names, subject, chat, matcher) for names in (accepted, golds)
    )
    f1 = token_f1(answer, accepted, matcher)
    return Judgement(correct, strict, f1, abstains(answer, chat=chat))


def says(text: str, names: Sequence[str], subject: str, *, chat: bool, matcher: str) -> bool:
    """Tells whether a generated text gives one of some answers, as `judge` does."""
    return _states(spoken(text, chat=chat), names, subject, chat, matcher)


def _states(answer: str, names: Sequence[str], subject: str, chat: bool, matcher: str) -> bool:
    exact = is_correct(answer, names, matcher)
    return exact or (chat and _says(answer, names, subject, matcher))


def spoken(text: str, *, chat: bool) -> str:
    """Returns the part of a generated text that is judged."""
    return chat_answer(text) if chat else first_line(text)


def abstains(answer: str, *, chat: bool = False) -> bool:
    """Tells whether an answer declines to answer; an empty one does."""
    given = normalise(answer) if answer.strip() else ""
    return not given or given in _ABSTENTIONS or (chat and bool(_DECLINES.search(given)))


def token_f1(answer: str, accepted: Iterable[str], matcher: str = MATCHER_VERSION) -> float:
    """Returns the best harmonic mean of token precision and recall over accepted answers."""
    plain = MATCHERS[matcher]
    given = plain(answer).split()
    return max((_f1(given, plain(gold).split()) for gold in accepted), default=0.0)


def _f1(given: list[str], gold: list[str]) -> float:
    shared = sum((Counter(given) & Counter(gold)).values())
    return 2 * shared / (len(given) + len(gold)) if shared else 0.0


def chat_answer(text: str) -> str:
    """Returns the first sentence of a chat model's answer that isn't a filler, in plain text.

    Leading newlines, a reasoning block, markdown and labels ("**Answer:**") are dropped.
    """
    for line in _THOUGHT.sub("", text).splitlines():
        plain = _plain(line)
        if any(char.isalnum() for char in plain) and not line.lstrip().startswith("```"):
            sentence = _first_sentence(plain)
            if sentence and not sentence.endswith(":"):
                return sentence
    return ""


def _plain(line: str) -> str:
    bare = _EMPHASIS.sub("", _LINK.sub(r"\1", _BLOCK.sub("", line)))
    return _LABEL.sub("", bare.strip()).strip()


def _first_sentence(line: str) -> str:
    """The first sentence with content; a full stop after an abbreviation ends none."""
    sentence = ""
    for part in _SENTENCE_END.split(line):
        sentence = f"{sentence} {part}".strip()
        if _ABBREVIATION.search(sentence):
            continue
        if not (_FILLER.match(normalise(sentence)) and len(sentence.split()) <= 3):
            return sentence
        sentence = ""
    return sentence


def _says(answer: str, names: Sequence[str], subject: str, matcher: str) -> bool:
    """Whether an answer is a sentence that states one of the names without hedging."""
    plain = MATCHERS[matcher]
    # Where the answer stands in the subject ("Luxembourg's capital"), repeating the question
    # must not count: one mention of the subject is taken out.
    said = _without(f" {plain(answer)} ", plain(subject))
    rests = (_without(said, plain(name)) for name in names)
    return any(rest != said and not _HEDGES & set(rest.split()) for rest in rests)


def _without(said: str, words: str) -> str:
    return said.replace(f" {words} ", " | ", 1) if words else said
