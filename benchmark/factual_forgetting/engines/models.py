"""Loads causal language models of transformers, on the device there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from factual_forgetting.engines.bf16 import hasten_bf16
from factual_forgetting.errors import UserError, reason_of


def load_causal_lm(
    path: Path, dtype: str = "auto", device: str | None = None, attention: str | None = None
) -> tuple[Any, Any]:
    """Loads a checkpoint's model in eval mode and its tokenizer.

    Args:
        path: Checkpoint directory.
        dtype: A torch dtype's name, or `auto` for the checkpoint's own.
        device: For example `cuda:0`; None takes the GPU where there is one.
        attention: transformers' name of an attention implementation; None for its default.

    Raises:
        UserError: If transformers can't load it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hasten_bf16()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, attn_implementation=attention
        ).to(device or default_device())
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not load ({reason_of(error)}). "
            "Check the checkpoint, the dtype and the device."
        ) from error
    return model.eval(), tokenizer


def context_length(model: Any) -> int | None:
    """Returns the most tokens that a model of transformers takes; None if it has no limit."""
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    return found


def default_device() -> str:
    """Returns the GPU where there is one; lm-eval's own default fails where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quiet() -> None:
    """Silences the progress bars that libraries draw while loading small things."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
