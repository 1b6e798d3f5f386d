"""Typed configuration from YAML: unknown keys are refused and numbers are numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from factual_forgetting.errors import InputError, NotFoundError


class Config(BaseModel):
    """Base of every configuration: frozen, and strict about keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML alone reads `1e-5` as text."""


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
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist. Check the path.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not readable YAML ({reason}). Mend the file.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no mapping of keys to values. Mend the file.")
    return value


def parse(kind: type[ConfigT], values: Mapping[str, Any], origin: str) -> ConfigT:
    """Validates values against a configuration type.

    Args:
        kind: The pydantic model to build.
        values: Keys and values.
        origin: Where the values come from, for the message.

    Raises:
        UserError: On an unknown key or a value of the wrong type, naming key and reason.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # A mistyped key is missing under its right name too; the typo tells more.
        found = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        faults = "; ".join(_fault(kind, fault) for fault in found[:5])
        raise InputError(f"{origin}: {faults}.") from None


def _fault(kind: type[BaseModel], fault: Any) -> str:
    key = ".".join(map(str, fault["loc"])) or "value"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}' (known: {', '.join(sorted(kind.model_fields))})"
    return f"key '{key}': {fault['msg'].removeprefix('Value error, ')}"
