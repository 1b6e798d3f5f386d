"""Where a command may write, found out before it works: nothing that isn't ours is replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import InputError, UserError, reason_of

_BLOCK = 4096
_LONGEST = 255 - len("..12345678") - len(files.UNFINISHED)  # bytes of a name, beside our own
_OTHER = "Give another --output_path."


def require_folder(path: Path, *names: str, begun: Callable[[Path], bool] | None = None) -> None:
    """Finds out whether a folder can be made and written; nothing is made.

    Args:
        path: The folder.
        names: Patterns of what the command will write there, and nobody else may have.
        begun: Tells of a folder whether the command wrote there before; it may do so again.

    Raises:
        UserError: If it can't be written, or holds something of another origin.
    """
    _require_path(path)
    there = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise InputError(f"{there} is no folder, and one has to be there. {_OTHER}")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(_BLOCK))
            probe.flush()
    except OSError as error:
        told = f"Nothing can be written in {there} ({error.strerror or reason_of(error)})"
        raise InputError(f"{told}. Free some space, or give another --output_path.") from None
    if there != path.absolute() or (begun is not None and begun(path)):
        return
    there_now = (p.name for p in path.iterdir() if not p.name.endswith(files.UNFINISHED))
    held = sorted(of for of in there_now if any(fnmatch(of, name) for name in names))
    if held:
        raise InputError(f"{path} holds {held[0]}, which this command didn't write. {_OTHER}")


def require_file(path: Path, ours: Callable[[Path], bool]) -> None:
    """Finds out whether a file can be written; `ours` tells whether one of its name is ours.

    Raises:
        UserError: If it can't, or something else is there.
    """
    _require_path(path)
    require_folder(path.parent)
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise InputError(f"{path} is no regular file. {_OTHER}")
    if not ours(path):
        raise InputError(f"{path} is there, and this command didn't write it. {_OTHER}")


def _require_path(path: Path) -> None:
    try:
        lengths = {part: len(part.encode()) for part in path.parts}
    except UnicodeEncodeError:
        raise InputError(f"The path {str(path)!a} is not UTF-8. {_OTHER}") from None
    for part, length in lengths.items():
        if length > _LONGEST:
            told = f"{part[:20]}… has {length} bytes, more than {_LONGEST}"
            raise InputError(f"A name in the output's path is too long: {told}. {_OTHER}")


def json_with(*keys: str) -> Callable[[Path], bool]:
    """Returns what tells whether a JSON file is an object with these keys, or a list of such."""

    def ours(path: Path) -> bool:
        try:
            value = files.read_json(path)
        except UserError:
            return False
        rows = value if isinstance(value, list) else [value]
        return bool(rows) and all(isinstance(row, dict) and row.keys() >= {*keys} for row in rows)

    return ours


@contextmanager
def taken(folder: Path, *, shared: bool = False) -> Iterator[Any]:
    """Makes a folder and keeps other commands out of it while this one writes."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder, shared=shared):
        try:
            yield
        except BaseException:
            if not shared:
                with suppress(OSError):
                    folder.rmdir()  # Where nothing was written.
            raise
