"""A model in memory, asked in the protocol's zero-shot prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factual_forgetting.engines.engine import Group, Query
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct


def ask_zero_shot(
    model: Any, tokenizer: Any, facts: Sequence[Fact], max_new_tokens: int
) -> list[bool]:
    """Tells which facts are answered right, greedily, in the protocol's zero-shot prompt.

    The verdicts are those of lm-eval's greedy scoring.
    """
    texts = answer_zero_shot(model, tokenizer, facts, max_new_tokens, verdict_only=True)
    return [is_correct(text, fact.accepted) for text, fact in zip(texts, facts, strict=True)]


def answer_zero_shot(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    max_new_tokens: int,
    *,
    verdict_only: bool = False,
) -> list[str]:
    """Answers facts greedily in the protocol's zero-shot prompt.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        facts: Facts to ask.
        max_new_tokens: Most tokens of an answer.
        verdict_only: Whether a text may end once no accepted answer can be reached any more.

    Returns:
        The texts, in the order of the facts.
    """
    engine = PrefixEngine(model, tokenizer)
    queries = [Query(question_prompt(f.question), f.accepted, likely=True) for f in facts]
    answers = engine.answer([Group("", queries)], max_new_tokens, verdict_only=verdict_only)[0]
    return [answer.text for answer in answers]
