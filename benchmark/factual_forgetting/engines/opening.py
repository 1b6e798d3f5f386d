"""Opens the engine that is asked for, or the fastest that can run a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint
from factual_forgetting.engines.decoding import tell_ignored
from factual_forgetting.engines.engine import Engine
from factual_forgetting.engines.lm_eval import LM_EVAL, LMEvalEngine
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.engines.tree import UnsupportedModelError
from factual_forgetting.engines.vllm import VLLMEngine
from factual_forgetting.errors import InputError

_AUTO = "auto"
_SUITED = {
    "hf": (PrefixEngine.name, "a checkpoint of transformers: shared prefixes are computed once"),
    "vllm": (VLLMEngine.name, "prompts go to vLLM sorted by prefix"),
}
ENGINES = (_AUTO, PrefixEngine.name, LM_EVAL, VLLMEngine.name)
_PREFIX_ARGUMENTS = {"pretrained", "revision", "dtype", "peft"}
_GPU_BATCH, _CPU_BATCH, _LM_EVAL_BATCH = 1024, 256, 64


def open_engine(
    choice: str, model: str, arguments: dict[str, Any], batch_size: str, device: str | None
) -> Engine:
    """Opens an engine, and says on stderr which one and why.

    Args:
        choice: One of `ENGINES`; `auto` takes the fastest that fits the model.
        model: lm-eval's name of the model class.
        arguments: Its arguments.
        batch_size: A number or `auto`.
        device: For example `cuda:0`; None takes the GPU where there is one.

    Raises:
        UserError: If the engine can't run this model.
    """
    arguments = checkpoint.safe_arguments(model, arguments)
    if model in checkpoint.LOCAL_MODELS and "pretrained" in arguments:
        code = bool(arguments.get("trust_remote_code"))
        path = checkpoint.locate(arguments["pretrained"], arguments.get("revision"), code=code)
        arguments = {**arguments, "pretrained": str(path)}
        tell_ignored(path)
    wanted, reason = choice, "as asked"
    if choice == _AUTO:
        wanted, reason = _SUITED.get(model, (LM_EVAL, f"--model {model} is lm-eval's"))
    engine: Engine | None = None
    if wanted == VLLMEngine.name:
        if device and ":" in device:
            raise InputError(
                f"vLLM takes the first of the devices that it sees, not {device}: give one with "
                "CUDA_VISIBLE_DEVICES. For several, use --ray N, or --shard I/N in place of "
                "accelerate launch."
            )
        engine = VLLMEngine(arguments)
    elif wanted == PrefixEngine.name:
        try:
            engine = _open_prefix(model, arguments, batch_size, device)
        except UnsupportedModelError as error:
            if choice != _AUTO:
                raise InputError(f"The prefix engine can't run this model: {error}.") from None
            reason = f"the prefix engine can't run this model: {error}"
    if engine is None:
        if model == "hf" and batch_size.startswith("auto"):
            batch_size = str(_LM_EVAL_BATCH)  # lm-eval would search for one in every round
        engine = LMEvalEngine(model, arguments, batch_size, device)
    sys.stderr.write(f"engine: {engine.name} ({reason})\n")
    return engine


def _open_prefix(
    model: str, arguments: dict[str, Any], batch_size: str, device: str | None
) -> PrefixEngine:
    if model != "hf":
        raise UnsupportedModelError(f"--model {model} is not hf")
    if foreign := sorted(set(arguments) - _PREFIX_ARGUMENTS):
        raise UnsupportedModelError(f"it knows no {', '.join(foreign)} in --model_args")
    path, dtype = Path(arguments["pretrained"]), arguments.get("dtype", "auto")
    adapter = Path(str(arguments["peft"])) if "peft" in arguments else None
    lm, tokenizer = load_causal_lm(path, dtype, device, adapter=adapter)
    default = _CPU_BATCH if lm.device.type == "cpu" else _GPU_BATCH
    size = default if batch_size.startswith("auto") else int(batch_size)
    return PrefixEngine(lm, tokenizer, size)
