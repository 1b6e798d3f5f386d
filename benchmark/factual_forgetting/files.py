"""Plain files: atomic writes, strict JSON, reproducible gzip and content hashes."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from factual_forgetting.errors import UserError


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


def loads(text: str) -> Any:
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


def write_atomic(path: Path, content: bytes) -> None:
    """Writes beside, syncs, renames: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_unfinished(path: Path) -> None:
    """Removes what `write_atomic` left beside a path when it was killed."""
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*"):
        stray.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented canonical JSON atomically."""
    write_atomic(path, (dumps(value, indent=2) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes one canonical JSON value a line, atomically; `.gz` paths are compressed.

    The gzip header carries no time and no name, so equal rows give equal bytes.
    """
    content = "".join(dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as stream:
            stream.write(content)
        content = buffer.getvalue()
    write_atomic(path, content)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: If the file is missing or isn't JSON.
    """
    try:
        return loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Check the path.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}). Restore or rewrite it.") from None


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yields the value of each line of a JSON Lines file, gzip-compressed if it ends in `.gz`.

    Raises:
        UserError: If the file is missing, or a line isn't JSON; the message names the line.
    """
    for number, line in _numbered_lines(path):
        try:
            yield loads(line.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}). Mend that line.") from None


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Check the path.") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path} is not readable ({error}). Restore it.") from None
