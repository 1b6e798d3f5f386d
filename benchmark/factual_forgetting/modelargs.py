"""lm-eval's spelling of arguments, `key=value,key=value`, read by lm-eval's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import InputError

# Names, though they may look like numbers: a commit as a revision does at times.
_NAMES = {"pretrained", "revision", "tokenizer", "peft", "lora_local_path", "gguf_file"}


def parse_settings(text: str) -> dict[str, Any]:
    """Parses a method's settings: `key=value,key=value`, or a JSON object, which can say all.

    Raises:
        UserError: If it is neither.
    """
    if not text.lstrip().startswith("{"):
        return parse_pairs(text)
    try:
        return dict(files.loads(text))
    except ValueError as error:
        raise InputError(f"'{text}' is not JSON ({error}). Write key=value,key=value.") from None


def parse_pairs(text: str) -> dict[str, Any]:
    """Parses `key=value,key=value`; numbers, booleans and None get their types.

    Raises:
        UserError: If a part has no `=`, or a key stands twice.
    """
    from lm_eval.utils import simple_parse_args_string

    pairs: dict[str, Any] = {}
    for part in _parts(text):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not key:
            raise InputError(f"'{part}' is not key=value. Write key=value,key=value.")
        if key in pairs:
            raise InputError(f"{key} is given twice in '{text}'. Give it once.")
        pairs |= {key: value} if key in _NAMES else simple_parse_args_string(f"{key}={value}")
    return pairs


def _parts(text: str) -> Iterator[str]:
    """Splits at commas, but not within the name of a directory that exists."""
    pieces = text.split(",")
    while pieces:
        joined = (",".join(pieces[:end]) for end in range(len(pieces), 1, -1))
        part = next((part for part in joined if _is_directory(part.partition("=")[2])), pieces[0])
        del pieces[: part.count(",") + 1]
        if part.strip():
            yield part.strip()


def _is_directory(name: str) -> bool:
    return bool(name.strip()) and Path(name.strip()).is_dir()


def parse_model_args(text: str) -> dict[str, Any]:
    """Parses lm-eval's `--model_args`; a path or name that comes first is the checkpoint.

    Raises:
        UserError: As `parse_pairs`, or if a GGUF file is asked for.
    """
    first, _, others = (text, "", "") if _is_directory(text) else text.partition(",")
    named = "=" not in first or _is_directory(first)
    arguments = {"pretrained": first, **parse_pairs(others)} if named else parse_pairs(text)
    if "gguf_file" in arguments:
        raise InputError(
            "gguf_file= is not read: what is trained, hashed and scored are safetensors. Convert "
            "it once: python scripts/from_gguf.py DIR FILE OUTPUT, then pretrained=OUTPUT."
        )
    at_home = {key: text for key, text in arguments.items() if str(text).startswith("~")}
    return arguments | {key: str(files.at_home(text)) for key, text in at_home.items()}
