"""What a server answers, checked where it enters: one text for each question, no longer than asked.

lm-eval pairs a server's answers with questions in order, whatever their number, and puts a text of
its own where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factual_forgetting.errors import InputError, UserError, reason_of

# Far above what a token holds: a longer answer is not one of so many tokens.
_CHARACTERS_A_TOKEN = 256


def require_answers(lm: Any) -> None:
    """Makes a model of lm-eval refuse answers that aren't to the questions that were sent."""
    if hasattr(lm, "parse_generations"):
        lm.parse_generations = _parser(lm.parse_generations)
    lm.generate_until = _asker(lm.generate_until)


def _parser(parse: Any) -> Any:
    def parsed(*, outputs: Any, contexts: Sequence[Any] | None = None, **rest: Any) -> list[str]:
        try:
            texts = list(parse(outputs=outputs, contexts=contexts, **rest))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _refusal(f"what it sent holds no answers: {reason_of(error)}") from None
        if None in texts:
            raise _refusal("an answer is null")
        if contexts is not None and len(texts) != len(contexts):
            raise _refusal(f"{len(texts)} answers came for {len(contexts)} questions")
        return texts

    return parsed


def _asker(ask: Any) -> Any:
    def asked(requests: Sequence[Any], *given: Any, **settings: Any) -> list[str]:
        try:
            texts: list[str] = ask(requests, *given, **settings)
        except AssertionError as error:  # of lm-eval, which puts answers in order
            raise _refusal(f"there are not as many as questions ({reason_of(error)})") from None
        if len(texts) != len(requests):
            raise _refusal(f"{len(texts)} answers came for {len(requests)} questions")
        for text, request in zip(texts, requests, strict=True):
            _check(text, dict(request.args[1]).get("max_gen_toks"))
        return texts

    return asked


def _check(text: Any, tokens: int | None) -> None:
    if not isinstance(text, str):
        raise _refusal(f"an answer is no text but {type(text).__name__}")
    if tokens is not None and len(text) > tokens * _CHARACTERS_A_TOKEN:
        raise _refusal(f"one has {len(text):,} characters, and {tokens} tokens were asked for")


def _refusal(cause: str) -> UserError:
    return InputError(
        f"The model's answers can't be taken: {cause}. Check that the server is an API of "
        "completions that heeds max_tokens, and try --batch_size 1."
    )
