"""Parameter groups by name: what trains and what is frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from factual_forgetting.engines.models import text_config
from factual_forgetting.errors import InputError
from factual_forgetting.protocol.settings import Freeze

# Names as they stand in Llama-, Qwen-, Mistral-, Gemma-, GPT-2-, GPT-NeoX-, Falcon-, MPT- and
# LFM2-like models of transformers.
_FFN, _LAYERS = "(?:mlp|ffn|feed_forward)", "(?:layers|h|blocks)"
_GROUPS = {
    "attention": r"\.(self_attn|attn|attention|self_attention)\.",
    "ffn": rf"\.{_FFN}\.",
    "gate_up": rf"\.{_FFN}\.(gate_proj|up_proj|gate_up_proj|c_fc|dense_h_to_4h|w1|w3)\.",
    "down": rf"\.{_FFN}\.(down_proj|c_proj|dense_4h_to_h|w2)\.",
    "embeddings": r"\.(embed_tokens|wte|wpe|embed_in|word_embeddings)\.",
    "norms": r"(norm|norm_[\df]|ln_\w+)\.(weight|bias)$",
    "lm_head": r"(^|\.)(lm_head|embed_out)\.",
    "layers": rf"\.{_LAYERS}\.\d+\.",
}
_LAYER = re.compile(rf"\.{_LAYERS}\.(\d+)\.")
_RANGE = re.compile(r"@(\d+)(?:-(\d+))?$")


def select(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Returns which of a model's parameter names are in the wanted groups.

    A group is a name or a regular expression searched for in parameter names; either may end in
    `@FIRST-LAST` or `@LAYER`, for those layers only (counted from 0).

    Raises:
        UserError: If a group or expression matches nothing or isn't an expression.
    """
    selected: set[str] = set()
    for group in wanted:
        matched = _matching(names, group)
        if not matched:
            layers = [int(found[1]) for name in names if (found := _LAYER.search(name))]
            span = f"layers 0-{max(layers)}; " if layers else ""
            tied = " Its output layer is tied to the input embeddings: give embeddings."
            raise InputError(
                f"The parameter group '{group}' matches no parameter of this model. "
                f"Groups: {', '.join(_GROUPS)}; {span}parameters look like {names[0]}."
                f"{tied if group == 'lm_head' else ''}"
            )
        selected |= matched
    return [name for name in names if name in selected]


def _matching(names: Sequence[str], group: str) -> set[str]:
    span = _RANGE.search(group)
    expression = group[: span.start()] if span else group
    try:
        pattern = re.compile(_GROUPS.get(expression, expression))
    except re.error as error:
        raise InputError(f"'{group}' is not a regular expression ({error}).") from None
    matched = {name for name in names if pattern.search(name)}
    if span is None:
        return matched
    layers = range(int(span[1]), int(span[2] or span[1]) + 1)
    return {n for n in matched if (layer := _LAYER.search(n)) and int(layer[1]) in layers}


def freeze(model: Any, settings: Freeze) -> Any:
    """Freezes every parameter outside the groups to train, in place, and returns the model."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = set(select(list(parameters), settings.trainable))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    return model


def freeze_beside_text(model: Any) -> None:
    """Freezes what no text reaches, such as a tower that reads images, in place."""
    if text_config(model) is model.config:
        return
    parts = (model.get_decoder(), model.get_output_embeddings())
    read = {id(parameter) for part in parts if part for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)
