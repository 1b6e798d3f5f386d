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
}


def select(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Returns the parameter names in the wanted groups.

    Args:
        names: All parameter names of a model.
        wanted: Names of groups, or regular expressions searched for in parameter names.

    Raises:
        UserError: If a group or expression matches nothing or isn't an expression.
    """
    selected: set[str] = set()
    for group in wanted:
        try:
            pattern = re.compile(GROUPS.get(group, group))
        except re.error as error:
            raise UserError(f"'{group}' is not a regular expression ({error}).") from None
        matched = {name for name in names if pattern.search(name)}
        if not matched:
            raise UserError(
                f"The parameter group '{group}' matches no parameter of this model. "
                f"Groups: {', '.join(GROUPS)}; parameters look like {names[0]}."
            )
        selected |= matched
    return [name for name in names if name in selected]


def train_only(model: Any, wanted: Sequence[str]) -> None:
    """Freezes every parameter outside the wanted groups, in place."""
    parameters = dict(model.named_parameters())
    trained = set(select(list(parameters), wanted))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
