"""Rows of a stranger's file, each with its line, and the fact that a row states.

JSON Lines, JSON (a list of objects), CSV and TSV, any of them gzip-compressed. Files are read
as a stream, but for JSON, whose list is one value. `files.read_jsonl` won't do here: it bounds
no line, and doesn't tell on which line a row stands that is JSON and yet no fact.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import InputError, NotFoundError, UserError
from factual_forgetting.facts.fact import FACT_SPLITS, Fact

FIELDS = ("question", "answers", "relation", "subject", "aliases", "split", "popularity", "domain")
# The relation of facts whose file has none.
RELATION_OF_ALL = "facts"
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SPLIT_NAMES = {**{split: split for split in FACT_SPLITS}, "validation": "dev", "valid": "dev"}

_LONGEST_ROW = 1 << 20
_OPENING = re.compile(r"\s*\[\s*")
_COMMA = re.compile(r"\s*,\s*")
_CLOSING = re.compile(r"\s*\]\s*\Z")
_WHOLE_NUMBER = re.compile(r"\d{1,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]")


def kind_of(path: Path) -> str:
    """Returns the suffix that tells a file's format, without a trailing `.gz`."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row after its file and the number of the line it starts on, for messages.

    Raises:
        UserError: If the file is missing, unreadable or of no known format; with file and line, if
            a row isn't an object: not JSON, not UTF-8, with a NUL byte, or longer than 1 MiB.
    """
    kind = kind_of(path)
    if kind not in SUFFIXES:
        raise InputError(f"{path} is none of {', '.join(SUFFIXES)}. Rename or convert it.")
    reader = {".jsonl": _json_lines, ".json": _json_list}.get(kind, _table)
    for line, row in reader(path):
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {line}: not an object. Write keys and values.")
        yield f"{path}, line {line}", row


def lacks_relations(source: str) -> bool:
    """Tells whether a source is a file whose first row has no column `relation`."""
    path = Path(source)
    if kind_of(path) not in SUFFIXES or not path.is_file():
        return False
    return any("relation" not in row for _, row in islice(read_rows(path), 1))


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    """Yields lines of at most `size` bytes; -1 sets no limit."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            while line := stream.readline(size):
                yield line
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist. Check the path.") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path} is not readable ({error}). Restore it.") from None


def _decode(data: bytes, path: Path, line: int) -> str:
    """Decodes bytes that start on a line, which may have a byte order mark if it is the first."""
    try:
        place, reason = data.find(b"\0"), "a NUL byte"
        if place < 0:
            return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        place, reason = error.start, f"not UTF-8 ({error.reason})"
    line += data.count(b"\n", 0, place)
    raise InputError(f"{path}, line {line}: {reason}. Write the file as UTF-8 text.")


def _too_long(path: Path, line: int) -> UserError:
    return InputError(f"{path}, line {line}: over {_LONGEST_ROW} bytes. Write one fact a row.")


def _not_json(path: Path, line: int, error: Exception) -> UserError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return InputError(f"{path}, line {line}: not JSON ({reason}). Mend that row.")


def _lines(path: Path) -> Iterator[str]:
    for number, data in enumerate(_chunks(path, _LONGEST_ROW + 1), start=1):
        if len(data) > _LONGEST_ROW:
            raise _too_long(path, number)
        yield _decode(data, path, number)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield number, files.loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_json(path, number, error) from None


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Parses a list item by item, so that the line of each is known."""
    text = _decode(b"".join(_chunks(path, -1)), path, 1)
    found = _OPENING.match(text)
    if found and _CLOSING.match(text, found.end()):
        return
    decode = json.JSONDecoder().raw_decode
    end, line = 0, 1
    while found:
        start = found.end()
        line += text.count("\n", end, start)
        try:
            row, end = decode(text, start)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, line, error) from None
        if end - start > _LONGEST_ROW:
            raise _too_long(path, line)
        yield line, row
        line += text.count("\n", start, end)
        found = _COMMA.match(text, end)
    if not _CLOSING.match(text, end):
        raise InputError(f"{path}, line {line}: not a list of rows, or cut off. Restore the file.")


def _table(path: Path) -> Iterator[tuple[int, Any]]:
    delimiter = "," if kind_of(path) == ".csv" else "\t"
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    line = 1
    try:
        head = next(reader, [])
        if len(set(head)) != len(head):
            raise InputError(f"{path}, line 1: a column name occurs twice. Rename it.")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(head):
                told = f"{len(cells)} cells for {len(head)} columns. Mend it."
                raise InputError(f"{path}, line {line}: {told}")
            if cells:
                yield line, dict(zip(head, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not a table row ({error}). Mend it.") from None


def fact_from_row(row: Mapping[str, Any], columns: Mapping[str, str], origin: str) -> Fact:
    """Builds a fact from a row.

    A column that `columns` doesn't name has its field's name; a name that starts with `=` is
    a constant. Only `question`, `answers` and `relation` must be there: the subject is else the
    question, and a hash of the subject decides the split.

    Args:
        row: Column names to values. Lists may also be written as JSON in a text.
        columns: Fields (`FIELDS`) to the names of their columns.
        origin: File and line, for messages.

    Raises:
        UserError: If a field is missing, empty, of a wrong type or not one line of text.
    """
    named = {field: columns.get(field, field) for field in FIELDS}
    values = {
        field: name[1:] if name.startswith("=") else row.get(name) for field, name in named.items()
    }
    if missing := [field for field in ("question", "answers", "relation") if not values[field]]:
        raise InputError(
            f"{origin}: no {', '.join(missing)}. The columns are {', '.join(row)}; "
            "name the right one with --column, as in --column answers=NAME."
        )
    question = _text(values["question"], "question", origin)
    split = str(values["split"] or "")
    if split and split not in SPLIT_NAMES:
        raise InputError(f"{origin}: split '{split}' is none of {', '.join(SPLIT_NAMES)}.")
    return Fact.make(
        _text(values["relation"], "relation", origin),
        _text(values["subject"] or question, "subject", origin),
        question,
        _texts(values["answers"], "answers", origin),
        SPLIT_NAMES.get(split),
        _texts(values["aliases"] or (), "aliases", origin),
        _number(values["popularity"], origin),
        _text(values["domain"], "domain", origin) if values["domain"] else None,
    )


def _number(value: Any, origin: str) -> int | None:
    if value is None or value == "":
        return None
    if not _WHOLE_NUMBER.fullmatch(str(value)):
        raise InputError(
            f"{origin}: popularity '{value}' is no whole number from 0. Write one, or leave the "
            "column out with --column popularity==."
        )
    return int(value)


def _texts(value: Any, field: str, origin: str) -> tuple[str, ...]:
    """Checks a list of texts, a JSON list in a text, or one text; repeats are dropped."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):  # "[REC]" is the name of a film
            value = [value]
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise InputError(f"{origin}: {field} is no text and no list of texts. Write a list.")
    return tuple(dict.fromkeys(_text(item, field, origin) for item in listed))


def _text(value: Any, field: str, origin: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{origin}: {field} is empty or not a text. Write a text.")
    text = value.strip()
    if not text.isprintable() and _CONTROL.search(text):
        told = f"{origin}: {field} has a line break or another control character. Write one line."
        raise InputError(told)
    return text
