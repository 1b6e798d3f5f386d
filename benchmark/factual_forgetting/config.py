"""Typed configuration from YAML: unknown keys are refused and numbers are numbers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from factual_forgetting import files
from factual_forgetting.errors import InputError

_LARGEST, _MOST_VALUES, _LONGEST_KEY = 256 << 10, 10_000, 100

# What a database and torch hold a number in, and a seed of numpy.
_LARGEST_NUMBER, _SEEDS = 2**63 - 1, 2**32
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of every configuration: frozen, strict about keys, its numbers finite, of 64 bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _of_64_bits(cls, value: Any) -> Any:
        parts = value.values() if isinstance(value, dict) else value
        for part in parts if isinstance(parts, Iterable) else [parts]:
            if isinstance(part, int) and abs(part) > _LARGEST_NUMBER:
                raise ValueError("the number has more than 64 bits")
        return value


class Told(BaseModel):
    """Base of what is read of a file that says more: of it, nothing that we use is another type."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


EntryT = TypeVar("EntryT")
# Of a strict configuration, whose file has a list.
Many = Annotated[tuple[EntryT, ...], Strict(False)]
ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_count(text: str) -> int:
    """Parses a number from 0 on the command line."""
    return _whole(text, _LARGEST_NUMBER + 1)


def parse_seed(text: str) -> int:
    """Parses a seed on the command line, such as all generators take."""
    return _whole(text, _SEEDS)


def parse_share(text: str) -> float:
    """Parses a share on the command line."""
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return share


def parse_batch_size(text: str) -> str:
    """Parses a batch size on the command line, in lm-eval's spelling."""
    if not re.fullmatch(r"auto(:\d{1,9})?|0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is neither auto nor a number from 1")
    return text


def _whole(text: str, end: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < end):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to {end - 1}")
    return int(text)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, as PyYAML alone reads `1e-5` as text; and every key once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Reads a mapping, before merges add keys that it may state again."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise ValueError("a key occurs twice")
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$"),
    list("-+0123456789"),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        UserError: If the file is missing, isn't YAML, or isn't a mapping.
    """
    with files.opened(path) as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError(f"{path} is larger than {_LARGEST >> 10} KiB. Give a configuration.")
    try:
        text = content.decode()
        value = yaml.load(text, Loader=_Loader)  # noqa: S506
        files.require_plain(value, text, _MOST_VALUES)
        files.loads(files.dumps(value))  # Neither dates nor bytes, and numbers as in JSON.
    except RecursionError:
        raise InputError(f"{path} is nested too deeply. Mend the file.") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{path} is not readable YAML ({error}). Mend the file.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no mapping of keys to values. Mend the file.")
    return value


def parse(kind: type[ConfigT], values: Any, origin: str) -> ConfigT:
    """Validates values against a configuration type.

    Args:
        kind: The pydantic model to build.
        values: Keys and values; anything else is refused.
        origin: Where the values come from, for the message.

    Raises:
        UserError: On an unknown key or a value of the wrong type, naming key and reason.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{origin}: no keys and values ({', '.join(sorted(kind.model_fields))}).")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # A mistyped key is missing under its right name too; the typo tells more.
        found = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        faults = "; ".join(_fault(kind, fault) for fault in found[:5])
        raise InputError(f"{origin}: {faults}.") from None


def _fault(kind: type[BaseModel], fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))[:_LONGEST_KEY] or "value"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}' (known: {', '.join(sorted(kind.model_fields))})"
    return f"key '{key}': {fault['msg'].removeprefix('Value error, ')}"
