"""How much memory work needs, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

_STATUS = Path("/proc/self/status")


def peak_memory(work: Callable[..., object], *arguments: object) -> float:
    """Most resident memory of a fresh process that does some work, in MiB.

    As VmHWM: a child inherits its parent's `ru_maxrss`, which would hide any growth.

    Args:
        work: A function at the top of a module.
        *arguments: What it is given; they are pickled.
    """
    if not _STATUS.exists():
        pytest.skip("resident memory is read from /proc")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, work, arguments).result()


def _peak(work: Callable[..., object], arguments: tuple[object, ...]) -> float:
    work(*arguments)
    told = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert told
    return int(told[1]) / 1024
