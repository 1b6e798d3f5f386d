"""The one text rule: how a question is asked, with and without exemplars, and answered."""

from __future__ import annotations

from collections.abc import Sequence

from factual_forgetting.facts.fact import Fact

MAX_NEW_TOKENS = 16
SEPARATOR = "\n\n"


def question_prompt(question: str) -> str:
    """Returns the zero-shot prompt; the answer follows after one space."""
    return f"Q: {question}\nA:"


def exemplar_prefix(exemplars: Sequence[Fact]) -> str:
    """Returns answered exemplars, each followed by an empty line, as the head of a prompt."""
    return "".join(f"{question_prompt(e.question)} {e.answers[0]}{SEPARATOR}" for e in exemplars)
