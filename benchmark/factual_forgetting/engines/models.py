"""Loads causal language models of transformers, on the device there is.

On processors without bf16 instructions torch multiplies bf16 matrices element by element, up to
a hundred times slower than in fp32; here they are as fast as fp32.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from factual_forgetting.engines.loading import load_model, load_tokenizer, way_out
from factual_forgetting.engines.merging import require_adapter, tokenizer_owner, with_adapter
from factual_forgetting.errors import InputError, UserError, reason_of

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def load_causal_lm(
    path: Path,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    adapter: Path | None = None,
) -> tuple[Any, Any]:
    """Loads a checkpoint's model in eval mode and its tokenizer.

    Args:
        path: Checkpoint directory.
        dtype: A torch dtype's name, or `auto` for the checkpoint's own.
        device: For example `cuda:0`; None takes the GPU where there is one.
        attention: transformers' name of an attention implementation; None for its default.
        adapter: Directory of an adapter that is merged into it, with its tokenizer if it has one.

    Raises:
        UserError: If transformers can't load it, or its files don't hold all of it.
    """
    hasten_bf16()
    device = found_device(device)
    try:
        model = load_model(path, dtype=dtype, attn_implementation=attention)
        if adapter is not None:
            model = with_adapter(model, require_adapter(adapter))
        model = model.to(device)
        tokenizer = load_tokenizer(tokenizer_owner(path, adapter))
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not load ({reason_of(error)}). {way_out(error)}") from error
    return model.eval(), tokenizer


def context_length(model: Any) -> int | None:
    """Returns the most tokens that a model of transformers takes; None if it has no limit."""
    found: int | None = getattr(text_config(model), "max_position_embeddings", None)
    return found


def text_config(model: Any) -> Any:
    """Returns the configuration of what reads text: a part, where a model reads images too."""
    return model.config.get_text_config(decoder=True)


def default_device() -> str:
    """Returns the GPU where there is one; lm-eval's own default fails where there is none."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    # A launcher gives each of its processes a GPU.
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def found_device(device: str | None) -> str:
    """Returns the device that is asked for, or the default.

    Raises:
        UserError: If it isn't there.
    """
    import torch

    if device is None:
        return default_device()
    kind, _, number = device.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}
    for other in ("mps", "xpu", "npu", "hpu"):
        there[other] = _count(getattr(torch, other, None))
    if (not number or number.isdecimal()) and int(number or 0) < there.get(kind, 0):
        return device
    names = [kind if n == 1 else f"{kind}:0 to {kind}:{n - 1}" for kind, n in there.items() if n]
    raise InputError(f"There is no device {device} here. Give --device {' or '.join(names)}.")


def _count(backend: Any) -> int:
    """Counts the devices of one of torch's backends, which a build of torch may lack."""
    return int(backend.device_count()) if hasattr(backend, "device_count") else 0


def quiet() -> None:
    """Silences the progress bars that libraries draw while loading small things."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def hasten_bf16() -> None:
    """Makes products of bf16 matrices fast where this processor has no instructions for them."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if hasattr(torch.library, "get_kernel") and not (supported and supported()):
        widen_products()


@cache
def widen_products() -> Any:
    """Computes bf16 products on the CPU in fp32 and rounds the result, as bf16 instructions do.

    What it returns has to be kept for as long as this shall hold.
    """
    import torch

    registry: Any = torch.library
    library = registry.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in _PRODUCTS:
            kernel = registry.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, _widened(kernel), "CPU", with_keyset=True, allow_override=True)
    return library


def _widened(kernel: Any) -> Callable[..., Any]:
    import torch

    def product(keys: Any, *given: Any, **scales: Any) -> Any:
        if given[0].dtype is not torch.bfloat16:
            return kernel.call_boxed(keys, *given, **scales)
        return kernel.call_boxed(keys, *(one.float() for one in given), **scales).bfloat16()

    return product
