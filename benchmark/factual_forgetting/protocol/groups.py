"""Parameter groups by name: what trains and what is frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from factual_forgetting.errors import UserError

# Names as they stand in Llama-, Qwen-, Mistral- and GPT-2-like models of transformers.
GROUPS = {
    "attention": r"\.(self_attn|attn)\.",
    "ffn": r"\.mlp\.",
    "gate_up": r"\.mlp\.(gate_proj|up_proj|gate_up_proj|c_fc)\.",
    "down": r"\.mlp\.(down_proj|c_proj)\.",
    "embeddings": r"\.(embed_tokens|wte|wpe)\.",
    "norms": r"(norm|ln_\d|ln_f)\.(weight|bias)$",
    "lm_head": r"(^|\.)lm_head\.",
    "layers": r"\.(layers|h)\.\d+\.",
}
_LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")
_RANGE = re.compile(r"@(\d+)(?:-(\d+))?$")


def select(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Returns the parameter names in the wanted groups.

    Args:
        names: All parameter names of a model.
        wanted: Names of groups, or regular expressions searched for in parameter names; each
            may end in `@FIRST-LAST` or `@LAYER`, for those layers only (counted from 0).

    Raises:
        UserError: If a group or expression matches nothing or isn't an expression.
    """
    selected: set[str] = set()
    for group in wanted:
        matched = {name for name in names if _matches(name, group)}
        if not matched:
            raise UserError(
                f"The parameter group '{group}' matches no parameter of this model. "
                f"Groups: {', '.join(GROUPS)}; {_layers_told(names)}"
                f"parameters look like {names[0]}.{_tied(group)}"
            )
        selected |= matched
    return [name for name in names if name in selected]


def _matches(name: str, group: str) -> bool:
    span = _RANGE.search(group)
    expression = group[: span.start()] if span else group
    try:
        pattern = re.compile(GROUPS.get(expression, expression))
    except re.error as error:
        raise UserError(f"'{group}' is not a regular expression ({error}).") from None
    if not pattern.search(name):
        return False
    if span is None:
        return True
    layer = _LAYER.search(name)
    first, last = int(span[1]), int(span[2] or span[1])
    return layer is not None and first <= int(layer[1]) <= last


def _layers_told(names: Sequence[str]) -> str:
    layers = [int(found[1]) for name in names if (found := _LAYER.search(name))]
    return f"layers 0-{max(layers)}; " if layers else ""


def _tied(group: str) -> str:
    if group != "lm_head":
        return ""
    return " Its output layer is tied to the input embeddings: give embeddings."


def train_only(model: Any, wanted: Sequence[str]) -> None:
    """Freezes every parameter outside the wanted groups, in place."""
    parameters = dict(model.named_parameters())
    trained = set(select(list(parameters), wanted))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
