"""Plain files: atomic writes, strict JSON, reproducible gzip and content hashes."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import IO, Any, cast

import jsonlines

from factual_forgetting.errors import InputError, NotFoundError, UserError

UNFINISHED, PARTIAL = ".unfinished", ".partial"
_DEEPEST = 64
_LARGEST, _LONGEST_LINE = 512 << 20, 64 << 20
# Honest text packs to a tenth, outcomes along a long curve to a few hundredths; a bomb to a
# thousandth.
_MOST_UNPACKED, _MOST_RATIO = 64 << 20, 500
_MOST_DIGITS = 20
_UNPORTABLE = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)\d)(\..*)?|.*[. ]")
_SURROGATE = re.compile(r"\\[uU][0-9a-fA-F]*[dD][89a-fA-F]")


def at_home(path: str | Path) -> Path:
    """Resolves a leading `~`, which a shell leaves alone in `--output_path=~/runs`.

    Raises:
        UserError: If it names no user with a home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} begins with no user's ~. Write the whole path.") from None


def portable(name: str) -> str:
    """Returns a name that Windows takes, too: none of its devices, no dot or space at its end."""
    return f"_{name}_" if _UNPORTABLE.fullmatch(name) else name


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


def _refuse(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _finite(token: str) -> float:
    if math.isinf(value := float(token)):
        raise ValueError(f"{token[:_MOST_DIGITS]} is beyond every number")
    return value


def _whole(token: str) -> int:
    if len(token) > _MOST_DIGITS or not -(2**63) <= int(token) < 2**63:
        raise ValueError(f"{token[:_MOST_DIGITS]} has more than 64 bits")
    return int(token)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


_STRICT = json.JSONDecoder(
    parse_constant=_refuse, parse_float=_finite, parse_int=_whole, object_pairs_hook=_unique
)
_LAX = json.JSONDecoder()


def loads(text: str | bytes, *, ours: bool = True) -> Any:
    """Parses JSON, strictly: whatever is read can be written, hashed and counted with.

    Args:
        text: UTF-8 where it is bytes.
        ours: Whether the form is ours. A model's config.json may hold Infinity, whole numbers of
            any size and a key twice, as Python reads JSON.

    Raises:
        ValueError: On malformed JSON, what nests too deeply, half a surrogate pair; and of ours on
            NaN, infinity, a number beyond 64 bits or a key that occurs twice.
    """
    told = (text.decode() if isinstance(text, bytes) else text).strip(" \t\r\n")
    value, end = loads_at(told, 0, ours=ours)
    if end < len(told):
        raise ValueError("more follows after its end")
    return value


def loads_at(text: str, start: int, *, ours: bool = True) -> tuple[Any, int]:
    """Parses the value that begins at a place of a text, as `loads` does; tells its end, too."""
    try:
        value, end = (_STRICT if ours else _LAX).raw_decode(text, start)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    require_plain(value, text[start:end])
    return value, end


def require_plain(value: Any, text: str, most: int | None = None) -> None:
    """Refuses what was parsed and yet can't be written.

    Args:
        value: What was parsed.
        text: What it was parsed from.
        most: Most values at a depth; for YAML, whose aliases make many of few.

    Raises:
        ValueError: On what nests too deeply, is too much, or half a surrogate pair.
    """
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST):
        held = (one.values() if isinstance(one, dict) else one for one in level)
        parts = (part for each in held for part in each if isinstance(part, (dict, list)))
        level = list(islice(parts, most))
        if not level:
            break
        if len(level) == most:
            raise ValueError("its aliases make too much of it")
    else:
        raise ValueError("it is nested too deeply")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is no character") from None


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
    beside = path.with_name(f".{path.name}{PARTIAL}")
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


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to read, unpacked if it ends in `.gz`: up to a bound, as strangers pack it.

    Raises:
        UserError: If it is missing, damaged or unreadable, or unpacks to far more than it holds.
    """
    try:
        with path.open("rb") as packed:
            yield io.BufferedReader(_Unpacked(packed)) if path.suffix == ".gz" else packed
    except UserError:
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist. Check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not readable ({error}). Restore it.") from None


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, up to a bound."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._stream = gzip.GzipFile(fileobj=packed)
        self._left = max(_MOST_UNPACKED, _MOST_RATIO * os.fstat(packed.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._stream.readinto(buffer)
        self._left -= size
        if self._left < 0:
            raise OSError("it unpacks to far more than an honest file")
        return size


def read_json(path: Path, *, ours: bool = True) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        ours: As in `loads`.

    Raises:
        UserError: If the file is missing, too large, or isn't JSON.
    """
    with opened(path) as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError(f"{path} is larger than {_LARGEST >> 20} MiB. Give another file.")
    try:
        return loads(content, ours=ours)
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}). Restore or rewrite it.") from None


def read_object(path: Path, *, ours: bool = True) -> dict[str, Any]:
    """Reads a JSON file of keys and values; see `read_json`."""
    value = read_json(path, ours=ours)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no object of keys and values. Restore or rewrite it.")
    return value


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yields the value of each line of a JSON Lines file, gzip-compressed if it ends in `.gz`.

    Raises:
        UserError: If the file is missing, or a line isn't JSON; the message names the line.
    """
    with opened(path) as stream:
        for number in count(1):
            if not (line := stream.readline(_LONGEST_LINE + 1)):
                return
            if len(line) > _LONGEST_LINE:
                raise InputError(f"{path}, line {number}: over {_LONGEST_LINE} bytes. Restore it.")
            if not line.strip():
                continue
            try:
                value = loads(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except ValueError as error:
                told = f"{path}, line {number}: not JSON ({error}). Mend that line."
                raise InputError(told) from None
            yield value
