"""Products in bf16 on processors without bf16 instructions, at the speed of fp32.

torch multiplies bf16 matrices there element by element, up to a hundred times slower than in fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def hasten_bf16() -> None:
    """Makes products of bf16 matrices fast where this processor has no instructions for them."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if hasattr(torch.library, "get_kernel") and not (supported and supported()):
        widen_products()


@cache
def widen_products() -> Any:
    """Computes bf16 products on the CPU in fp32 and rounds the result, as bf16 instructions do.

    Returns:
        What torch needs to be kept for as long as this shall hold.
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
        wide = [matrix.float() for matrix in given]
        return kernel.call_boxed(keys, *wide, **scales).bfloat16()

    return product
