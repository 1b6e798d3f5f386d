"""The processes that torchrun or accelerate started, as they tell it in the environment."""

from __future__ import annotations

import os


def world_size() -> int:
    """Returns the number of processes that torchrun or accelerate started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tells whether this process writes the files."""
    return int(os.environ.get("RANK", "0")) == 0
