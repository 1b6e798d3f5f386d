"""vLLM for real, in an environment of its own: scripts/test_vllm_cpu.sh."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

INSTALLED = find_spec("vllm") is not None
CPU = {
    "dtype": "float32",
    "max_model_len": 256,
    "enforce_eager": True,
    "block_size": 32,
    "gpu_memory_utilization": 0.3,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
}
real = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed: scripts/test_vllm_cpu.sh")


def on_cpu(pretrained: str) -> str:
    """Returns lm-eval's arguments for a checkpoint in fp32 on the CPU."""
    return ",".join(f"{key}={value}" for key, value in {"pretrained": pretrained, **CPU}.items())
