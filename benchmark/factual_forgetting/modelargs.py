"""lm-eval's spelling of arguments: `key=value,key=value`."""

from __future__ import annotations

from typing import Any

import yaml

from factual_forgetting.errors import UserError

# Names, though they may look like numbers: a commit as a revision does at times.
_NAMES = {"pretrained", "revision", "tokenizer", "peft", "lora_local_path"}


def parse_pairs(text: str) -> dict[str, Any]:
    """Parses `key=value,key=value`; numbers and booleans get their types.

    Raises:
        UserError: If a part has no `=`.
    """
    pairs: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise UserError(f"'{part}' is not key=value. Write key=value,key=value.")
        name = key.strip()
        pairs[name] = value.strip() if name in _NAMES else _value(value)
    return pairs


def _value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return text
    except yaml.YAMLError:
        return text


def parse_model_args(text: str) -> dict[str, Any]:
    """Parses lm-eval's `--model_args`; a path or name alone is the checkpoint."""
    return parse_pairs(text) if "=" in text else {"pretrained": text}
