"""How tests start several processes of one training."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).parents[1]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def environment() -> dict[str, str]:
    """Returns this process's environment with the package and the tests in reach, one thread."""
    source = os.pathsep.join(str(_ROOT / name) for name in ("benchmark", "tests", "tests/protocol"))
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
