"""What a number was made with: versions and hardware, to paste into a report."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

_PACKAGES = (
    "factual-forgetting",
    "lm_eval",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "vllm",
)


def environment() -> dict[str, Any]:
    """Returns versions of Python and of the packages that matter, and the device."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "device": _device(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "cpu"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"cpu, {torch.get_num_threads()} threads"
