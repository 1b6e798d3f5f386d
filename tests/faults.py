"""Kills a command before its n-th change of the disk, or fills the disk from there on.

Changes are counted where Python tells of them (its audit events): each file opened to write, each
rename, removal and folder, by whatever library.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factual_forgetting import files

KILLED = -signal.SIGKILL
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"}
# When something was written, and how long it took: a record's day, and lm-eval's times.
_RECORDED = re.compile(
    rb'"recorded": "[^"]*"|"date": [\d.]+|"(start_time|end_time)": [\d.]+'
    rb'|"total_evaluation_time_seconds": "[\d.]+"'
)
_DATED = re.compile(r"_\d{4}-\d\d-\d\dT[\d.-]+(?=\.json)")  # names of lm-eval's files
_WRITES = os.O_WRONLY | os.O_RDWR


def kill(event: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(event: str) -> None:
    if event not in {"os.remove", "os.rmdir"}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse(event: str) -> None:
    """As a folder that may only be read, to root too."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def attempt(
    job: Callable[[], Any], root: Path, at: int | None = None, act: Callable[[str], None] = kill
) -> tuple[int, int]:
    """Runs a job in a process of its own; returns its status and how often it changed `root`.

    Args:
        job: What to run; what it returns is its status.
        root: Where changes count.
        at: The change before which `act` is called, and again before each later one; None never.
        act: What happens there.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, str(root), at, act, sender))
    process.start()
    sender.close()
    try:
        count = receiver.recv()
    except EOFError:
        count = 0
    process.join()
    return process.exitcode, count


def _run(
    job: Callable[[], Any], root: str, at: int | None, act: Callable[[str], None], sender: Any
) -> None:
    files._remove_unfinished.cache_clear()
    count = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if _changes(event, args, root):
            count += 1
            if at is not None and count >= at:
                act(event)

    sys.addaudithook(watch)
    status = int(job() or 0)
    sender.send(count)
    sys.stdout.flush()
    os._exit(status)


def _changes(event: str, args: tuple[Any, ...], root: str) -> bool:
    if event == "open":
        path, mode, flags = args
        writes = flags & _WRITES or (mode and set(mode) & set("wax+"))
        return bool(writes) and isinstance(path, str | bytes) and os.fsdecode(path).startswith(root)
    if event not in _CHANGES:
        return False
    path = args[0]
    if not isinstance(path, str | bytes):
        return False
    name = os.fsdecode(path)
    return name.startswith(root) or not name.startswith("/")  # relative to an open folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, without what tells times."""
    return {
        _DATED.sub("", str(path.relative_to(folder))): _RECORDED.sub(b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".log.json")
    }
