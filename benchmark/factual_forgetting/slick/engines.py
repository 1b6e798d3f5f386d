"""Engines answer questions greedily: lm-eval's model classes, and our own with a shared prefix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import first_line
from factual_forgetting.slick.answers import Answer, Group


class LMEvalEngine:
    """Any model class of lm-eval, with its own tokenisation, stops and batching."""

    def __init__(self, model: str, model_args: str, batch_size: str, device: str | None) -> None:
        """Loads the model.

        Args:
            model: lm-eval's name of the class, for example `hf` or `vllm`.
            model_args: Its arguments, `key=value` separated by commas.
            batch_size: A number or `auto`.
            device: For example `cuda:0`; None leaves the choice to lm-eval.
        """
        from lm_eval.api.registry import get_model

        self.name = f"lm-eval:{model}"
        self._lm = get_model(model).create_from_arg_string(
            model_args, {"batch_size": batch_size, "device": device or default_device()}
        )

    def answer(
        self, groups: Sequence[Group], max_new_tokens: int, *, verdict_only: bool = False
    ) -> list[list[Answer]]:
        """See `Engine.answer`; lm-eval's classes can't stop early."""
        settings = {"max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0}
        prompts = [group.prefix + query.text for group in groups for query in group.queries]
        answers = iter(self._generate(prompts, settings))
        return [list(islice(answers, len(group.queries))) for group in groups]

    def _generate(self, prompts: Sequence[str], settings: dict[str, Any]) -> list[Answer]:
        from lm_eval.api.instance import Instance

        requests = [
            Instance("generate_until", {}, (prompt, {"until": ["\n"], **settings}), index)
            for index, prompt in enumerate(prompts)
        ]
        texts = self._lm.generate_until(requests, disable_tqdm=True)
        return [Answer(first_line(text)) for text in texts]


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

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, attn_implementation=attention
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not load ({reason}). Check the checkpoint.") from None
    return model.to(device or default_device()).eval(), tokenizer


def default_device() -> str:
    """Returns the GPU where there is one; lm-eval's own default fails where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quiet() -> None:
    """Silences the progress bars that libraries draw while loading small things."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
