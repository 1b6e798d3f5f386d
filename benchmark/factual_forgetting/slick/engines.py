"""The engines: lm-eval's model classes, our own, vLLM, and the choice among them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint
from factual_forgetting.bf16 import hasten_bf16
from factual_forgetting.errors import UserError, reason_of
from factual_forgetting.facts.fact import stable_hash
from factual_forgetting.facts.matching import first_line
from factual_forgetting.slick.answers import Answer, Engine, Group, Sampling, halving, require_room
from factual_forgetting.slick.prefix import PrefixEngine
from factual_forgetting.slick.tree import UnsupportedModelError

PREFIX, LM_EVAL, VLLM, AUTO = "prefix", "lm-eval", "vllm", "auto"
_LOCAL = {"hf", "vllm"}
_PREFIX_ARGUMENTS = {"pretrained", "revision", "dtype"}
_GPU_BATCH, _CPU_BATCH, _LM_EVAL_BATCH = 1024, 256, 64


def open_engine(
    choice: str, model: str, arguments: dict[str, Any], batch_size: str, device: str | None
) -> Engine:
    """Opens an engine, and says on stderr which one and why.

    Args:
        choice: `prefix`, `lm-eval` or `vllm`; `auto` takes the fastest that fits the model.
        model: lm-eval's name of the model class.
        arguments: Its arguments.
        batch_size: A number or `auto`.
        device: For example `cuda:0`; None takes the GPU where there is one.

    Raises:
        UserError: If the engine can't run this model.
    """
    if model in _LOCAL and "pretrained" in arguments:
        path = checkpoint.locate(arguments["pretrained"], arguments.get("revision"))
        arguments = {**arguments, "pretrained": str(path)}
    wanted, reason = (choice, "as asked") if choice != AUTO else _suited(model)
    if wanted == PREFIX:
        try:
            engine: Engine = _open_prefix(model, arguments, batch_size, device)
        except UnsupportedModelError as error:
            if choice == PREFIX:
                raise UserError(f"The prefix engine can't run this model: {error}.") from None
            wanted, reason = LM_EVAL, f"the prefix engine can't run this model: {error}"
    if wanted == VLLM:
        from factual_forgetting.slick.vllm import VLLMEngine

        engine = VLLMEngine(arguments)
    elif wanted == LM_EVAL:
        text = ",".join(f"{key}={value}" for key, value in arguments.items())
        if model == "hf" and batch_size.startswith("auto"):
            batch_size = str(_LM_EVAL_BATCH)  # lm-eval would search for one in every round
        engine = LMEvalEngine(model, text, batch_size, device)
    sys.stderr.write(f"engine: {engine.name} ({reason})\n")
    return engine


def _suited(model: str) -> tuple[str, str]:
    if model == "vllm":
        return VLLM, "prompts go to vLLM sorted by prefix"
    if model != "hf":
        return LM_EVAL, f"--model {model} is lm-eval's"
    return PREFIX, "a checkpoint of transformers: shared prefixes are computed once"


def _open_prefix(
    model: str, arguments: dict[str, Any], batch_size: str, device: str | None
) -> PrefixEngine:
    if model != "hf":
        raise UnsupportedModelError(f"--model {model} is not hf")
    foreign = sorted(set(arguments) - _PREFIX_ARGUMENTS)
    if foreign:
        raise UnsupportedModelError(f"it knows no {', '.join(foreign)} in --model_args")
    lm, tokenizer = load_causal_lm(
        Path(arguments["pretrained"]), arguments.get("dtype", "auto"), device
    )
    penalty = getattr(lm.generation_config, "repetition_penalty", None)
    if penalty not in (None, 1.0):
        raise UnsupportedModelError(f"its generation_config.json sets repetition_penalty {penalty}")
    default = _CPU_BATCH if lm.device.type == "cpu" else _GPU_BATCH
    size = default if batch_size.startswith("auto") else int(batch_size)
    return PrefixEngine(lm, tokenizer, size)


class LMEvalEngine:
    """Any model class of lm-eval, with its own tokenisation, stops and batching.

    Attributes:
        batch_size: Questions in one batch, where it is a number; halved when memory runs out.
    """

    def __init__(self, model: str, model_args: str, batch_size: str, device: str | None) -> None:
        """Loads the model.

        Args:
            model: lm-eval's name of the class, for example `hf` or `vllm`.
            model_args: Its arguments, `key=value` separated by commas.
            batch_size: A number or `auto`.
            device: For example `cuda:0`; None takes the GPU where there is one.

        Raises:
            UserError: If lm-eval can't load it.
        """
        from lm_eval.api.registry import get_model

        hasten_bf16()
        self.name = f"{LM_EVAL}:{model}"
        settings = {"batch_size": batch_size, "device": device or default_device()}
        try:
            self._lm = get_model(model).create_from_arg_string(model_args, settings)
        except Exception as error:  # dozens of libraries stand behind these classes
            raise UserError(
                f"lm-eval's model class {model} does not open ({reason_of(error)}). "
                "Check --model, --model_args and --device."
            ) from error

    @property
    def batch_size(self) -> int:
        """Questions in one batch."""
        size = getattr(self._lm, "batch_size_per_gpu", None)
        return size if isinstance(size, int) else _LM_EVAL_BATCH

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._lm.batch_size_per_gpu = size

    def answer(
        self, groups: Sequence[Group], max_new_tokens: int, *, verdict_only: bool = False
    ) -> list[list[Answer]]:
        """See `Engine.answer`; lm-eval's classes can't stop early."""
        settings = {"max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0}
        return self._ask(groups, settings)

    def sample(
        self, groups: Sequence[Group], max_new_tokens: int, sampling: Sampling
    ) -> list[list[list[Answer]]]:
        """See `Engine.sample`; the draws depend on the batch as well."""
        settings = {
            "max_gen_toks": max_new_tokens,
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
        }
        passes = []
        for number in range(sampling.samples):
            _seed(f"{sampling.seed}-{number}")
            passes.append(self._ask(groups, settings))
        return [
            [list(drawn) for drawn in zip(*group, strict=True)]
            for group in zip(*passes, strict=True)
        ]

    def _ask(self, groups: Sequence[Group], settings: dict[str, Any]) -> list[list[Answer]]:
        from lm_eval.api.instance import Instance

        prompts = [group.prefix + query.text for group in groups for query in group.queries]
        self._require_room(prompts, settings["max_gen_toks"])
        requests = [
            Instance("generate_until", {}, (prompt, {"until": ["\n"], **settings}), index)
            for index, prompt in enumerate(prompts)
        ]
        texts: list[str] | None = None
        while texts is None:
            with halving(self, self.batch_size):
                texts = self._lm.generate_until(requests, disable_tqdm=True)
        answers = (Answer(first_line(text)) for text in texts)
        return [list(islice(answers, len(group.queries))) for group in groups]

    def _require_room(self, prompts: Sequence[str], max_new_tokens: int) -> None:
        """lm-eval would cut the head of a prompt that is too long, and say it in a log."""
        context = getattr(self._lm, "max_length", None)
        if context is None or not hasattr(self._lm, "tok_encode"):
            return
        for prompt in prompts:
            # No token is shorter than a byte: most prompts need not be counted.
            if len(prompt.encode()) + max_new_tokens < context:
                continue
            tokens = len(self._lm.tok_encode(prompt)) + max_new_tokens
            require_room(tokens, context)


def _seed(text: str) -> None:
    import torch

    torch.manual_seed(int(stable_hash("sample", text)[:8], 16))


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


def default_device() -> str:
    """Returns the GPU where there is one; lm-eval's own default fails where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quiet() -> None:
    """Silences the progress bars that libraries draw while loading small things."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
