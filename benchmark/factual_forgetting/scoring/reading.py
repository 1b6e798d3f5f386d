"""What a model reads: arguments of lm-eval that change it, prompts cut short, tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.engines.loading import load_tokenizer
from factual_forgetting.errors import InputError

_CUTS = ("truncation", "truncate")
# They say where a model is and how to reach it; the precision is told by itself.
_UNTOLD = {
    "model", "dtype", "base_url", "tokenized_requests", "tokenizer_backend",
}  # fmt: skip


def require_uncut(arguments: Mapping[str, Any]) -> None:
    """Raises a UserError where arguments of a model ask for prompts to be cut."""
    for name in _CUTS:
        if arguments.get(name):
            raise InputError(
                f"{name} in --model_args is refused: it would cut prompts without a word. Leave "
                "it out."
            )


def told_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a model that may change what it reads or computes."""
    rest = checkpoint.other_arguments(arguments)
    # Code that was not run is no setting.
    unset = {k for k, v in rest.items() if v is None or (k == "trust_remote_code" and not v)}
    return {k: rest[k] for k in sorted(rest) if k not in _UNTOLD | unset}


def require_room(
    prompts: Iterable[str], context: int | None, answer: int, tokenizer: Path | None
) -> None:
    """Refuses prompts whose heads lm-eval cut, or would cut, to leave room for the answer.

    Args:
        prompts: What the model was, or is to be, asked.
        context: Most tokens of prompt and answer together; None if there is no limit.
        answer: Most tokens of the answer.
        tokenizer: Directory of the model's tokenizer; None if it isn't on this machine.

    Raises:
        UserError: If one is too long, or may be and there is no tokenizer to tell by.
    """
    if context is None:
        return
    room = context - answer
    # No token is shorter than a byte: most prompts need not be counted.
    long = [text for text in prompts if len(text.encode()) >= room]
    if not long:
        return
    longest = f"up to {max(len(text.encode()) for text in long)} bytes"
    if tokenizer is not None:
        most = max(map(len, load_tokenizer(tokenizer)(long)["input_ids"]))
        if most <= room:
            return
        longest = f"{most} tokens"
    raise InputError(
        f"The context of {context} tokens leaves {room} for a prompt, and prompts have {longest}: "
        "lm-eval would cut their heads. Score with a larger max_length, or none."
    )


def differing_frames(first: Path, second: Path) -> tuple[list[int], list[int]] | None:
    """Returns the special tokens that two tokenizers put around a text; None if the same.

    BOS, above all: it may be lost where a trainer saves its tokenizer.
    """
    if _frame_settings(first) == _frame_settings(second):
        return None
    found, other = (load_tokenizer(path)("")["input_ids"] for path in (first, second))
    return None if found == other else (found, other)


def _frame_settings(path: Path) -> list[Any]:
    tokenizer, config = (
        files.read_object(path / name, ours=False) if (path / name).is_file() else {}
        for name in ("tokenizer.json", "tokenizer_config.json")
    )
    keys = ("add_bos_token", "add_eos_token", "bos_token", "eos_token")
    return [tokenizer.get("post_processor"), *(config.get(key) for key in keys)]
