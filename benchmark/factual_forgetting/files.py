"""Plain files: atomic writes, strict JSON, reproducible gzip and content hashes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import jsonlines

from factual_forgetting.errors import InputError, NotFoundError, UserError

UNFINISHED, _PARTIAL = ".unfinished", ".partial"


def at_home(path: str | Path) -> Path:
    """Resolves a leading `~`, which a shell leaves alone in `--output_path=~/runs`.

    Raises:
        UserError: If it names no user with a home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} begins with no user's ~. Write the whole path.") from None


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's whole content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the hexadecimal sha256 of a value's canonical JSON."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def dumps(value: Any, indent: int | None = None) -> str:
    """Serialises to JSON with sorted keys, no NaN, and text kept readable."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


def loads(text: str | bytes) -> Any:
    """Parses strict JSON.

    Raises:
        ValueError: On malformed JSON, NaN or infinity, or a repeated key.
    """

    def refuse(token: str) -> Any:
        raise ValueError(f"{token} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


@contextmanager
def atomic(path: Path, *, lasting: bool = True) -> Iterator[IO[bytes]]:
    """Opens a file beside a path, which takes the path's name only when it is whole.

    It is synced before, unless it need not outlive a power cut: that takes longer than the rest.
    What killed commands left unfinished in that folder goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(path.parent.resolve())
    with _beside(path) as out:
        beside = Path(out.name)
        try:
            yield out
            out.flush()
            if lasting:
                os.fsync(out.fileno())
            beside.chmod(0o644)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _beside(path: Path) -> IO[bytes]:
    """Makes the file, held by a lock that tells it from one whose command was killed."""
    while True:
        out = tempfile.NamedTemporaryFile(  # noqa: SIM115
            dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED, delete=False
        )
        _try_lock(out.fileno())
        if os.fstat(out.fileno()).st_nlink:  # Else it was taken for a leftover before the lock.
            return cast(IO[bytes], out)
        out.close()


@cache  # Once in a process: folders of a page hold thousands of files.
def _remove_unfinished(folder: Path) -> None:
    for stray in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), stray.open("rb") as stream:
            if _try_lock(stream.fileno()):
                stray.unlink()


def _try_lock(handle: int, *, shared: bool = False) -> bool | None:
    """Locks an open file or folder; tells whether nobody else holds it, None without locks."""
    try:
        import fcntl  # Not on every platform.

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


@contextmanager
def alone(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps other commands out of a folder, or a file; the lock of a killed one is gone with it.

    Args:
        path: The folder or file, which is there.
        shared: Whether others that share it may work in it too.

    Raises:
        UserError: If another command is at work there.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if _try_lock(handle, shared=shared) is False:
            raise UserError(
                f"Another command is at work in {path}. Wait until it ends, or give another "
                "--output_path."
            )
        yield
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same path; a killed one is out."""
    import fcntl  # Not on every platform, and needed by few commands.

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Gives a directory beside a path, which takes the path's place when all in it is written.

    Raises:
        UserError: If another command is writing it.
    """
    beside = path.with_name(f".{path.name}{_PARTIAL}")
    beside.mkdir(parents=True, exist_ok=True)
    with alone(beside):
        for left in beside.iterdir():  # by a killed command
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield beside
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)


def write_atomic(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Writes a file that a reader sees whole or not at all; see `atomic`."""
    with atomic(path, lasting=lasting) as stream:
        stream.write(content)


def remove_marked(folder: Path, mark: str) -> None:
    """Removes a folder of ours, the file that tells that it is ours last."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != mark:
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented canonical JSON atomically."""
    write_atomic(path, (dumps(value, indent=2) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes one canonical JSON value a line, atomically; `.gz` paths are compressed.

    The gzip header carries no time and no name, so equal rows give equal bytes.
    """
    with ExitStack() as stack:
        stream: Any = stack.enter_context(atomic(path))
        if path.suffix == ".gz":
            stream = stack.enter_context(gzip.GzipFile("", "wb", fileobj=stream, mtime=0))
        jsonlines.Writer(stream, dumps=dumps).write_all(rows)


def read_json(path: Path, *, ours: bool = True) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        ours: Whether this package wrote it, strictly; else it is read as Python reads JSON, with
            the Infinity that a model's config.json may hold.

    Raises:
        UserError: If the file is missing or isn't JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return loads(text) if ours else json.loads(text)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist. Check the path.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}). Restore or rewrite it.") from None


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yields the value of each line of a JSON Lines file, gzip-compressed if it ends in `.gz`.

    Raises:
        UserError: If the file is missing, or a line isn't JSON; the message names the line.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            lines = jsonlines.Reader(stream, loads=loads)
            yield from lines.iter(allow_none=True, skip_empty=True)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist. Check the path.") from None
    except jsonlines.InvalidLineError as error:
        reason = error.__cause__ or error
        raise InputError(
            f"{path}, line {error.lineno}: not JSON ({reason}). Mend that line."
        ) from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path} is not readable ({error}). Restore it.") from None
