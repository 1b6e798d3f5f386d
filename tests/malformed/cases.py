"""Malformed files, made from one valid instance of each: every leaf and every kind of damage."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

# What stands as such in the file: no Python value gives these tokens.
_RAW = {
    "<1e400>": "1e400",
    "<digits>": "9" * 400,
    "<NaN>": "NaN",
    "<-Infinity>": "-Infinity",
    "<surrogate>": '"\\ud800"',
    "<deep>": "[" * 5000 + "]" * 5000,
    "<deep object>": '{"a":' * 2000 + "1" + "}" * 2000,
}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 2**63, -(10**15), "", "x", "1", "-1", "../x",
    "\x1b]0;x\x07\x9b31m", "$x_{a", "<b>|", "two\nlines", "a" * 5000,
    [], [None], ["x"], [[]], {}, {"x": None}, *_RAW,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One file's other content, and what was done to it."""

    file: str
    told: str
    content: bytes


def cases(file: str, content: bytes) -> Iterator[Case]:
    """Yields the cases of a file: those of its form, and those of its bytes."""
    packed = file.endswith(".gz")
    plain = gzip.decompress(content) if packed else content
    kind = PurePath(file.removesuffix(".gz")).suffix
    makers = {".json": _of_json, ".jsonl": _of_lines, ".yaml": _of_yaml, ".csv": _of_table}
    for told, other in makers.get(kind, _nothing)(plain.decode()):
        changed = other.encode("utf-8", "surrogatepass")
        yield Case(file, told, gzip.compress(changed, 1, mtime=0) if packed else changed)
    for told, damaged in _of_bytes(plain, random.Random(file)):
        yield Case(file, told, gzip.compress(damaged, 1, mtime=0) if packed else damaged)
    if packed:
        for told, damaged in _of_bytes(content, random.Random(file)):
            yield Case(file, f"packed {told}", damaged)
        yield Case(file, "packed trailing garbage", content + b"garbage")
        yield Case(file, "packed twice", content + content)
        bomb = gzip.compress(b" " * 2**20, 9, mtime=0)
        yield Case(file, "packed bomb in one line", bomb * 300)
        lines = gzip.compress(b"{}\n" * 2**18, 9, mtime=0)
        yield Case(file, "packed bomb of lines", lines)


def _nothing(text: str) -> Iterator[tuple[str, str]]:
    yield from ()


def _of_json(text: str) -> Iterator[tuple[str, str]]:
    value = json.loads(text)
    for told, other in _changed(value):
        yield told, dumps(other)
    for told, other in _doubled(value):
        yield told, other
    for token in _RAW.values():
        yield f"whole {token[:9]}", token


def _of_lines(text: str) -> Iterator[tuple[str, str]]:
    lines = text.splitlines()
    places = sorted({0, len(lines) - 1}) if lines else []
    for place in places:
        for told, other in _of_json(lines[place]):
            yield (
                f"line {place + 1}: {told}",
                "\n".join([*lines[:place], other, *lines[place + 1 :]]),
            )
    for place in places:
        yield f"line {place + 1} dropped", "\n".join(lines[:place] + lines[place + 1 :])
        yield f"line {place + 1} twice", "\n".join([*lines, lines[place]])
    yield "no lines", ""
    yield "reversed", "\n".join(reversed(lines))


def _of_yaml(text: str) -> Iterator[tuple[str, str]]:
    import yaml

    value = yaml.safe_load(text)
    for told, other in _of_json(json.dumps(value)):
        yield told, other.replace("\t", " ")
    yield "a key twice", f"{text}\n{text}"
    yield "aliases", "a: &a [x]\n" + "".join(f"k{i}: &k{i} [*{p}]\n" for i, p in _chain("a", 60))
    wide = "".join(f"k{i}: &k{i} [{', '.join([f'*{p}'] * 9)}]\n" for i, p in _chain("a", 12))
    yield "aliases that expand", f"a: &a [x]\n{wide}"
    yield "an alias of itself", "a: &a [*a]\n"
    for key in value:
        for token in (".inf", ".nan", "2020-13-45", "2020-01-02", "!!binary x", "!!int ''", "*b",
                      "!!bool x", "!!timestamp x", "!!float ''", "!!python/name:os.system",
                      "{? [a] : b}", "{1: 2}", "0x_", "1e400", "!!set {a}", "1:99", "'\\ud800'",
                      '"\\ud800"'):  # fmt: skip
            told = {**value, key: "<token>"}
            yield f"{key}: {token}", json.dumps(told).replace('"<token>"', token)


def _chain(first: str, length: int) -> Iterator[tuple[int, str]]:
    before = first
    for index in range(length):
        yield index, before
        before = f"k{index}"


def _of_table(text: str) -> Iterator[tuple[str, str]]:
    rows = [line.split(",") for line in text.splitlines()]
    cells = [
        "", "nan", "['a', 'b']", "[", "[1]", '["\\ud800"]', '"', "NaN", "x\x1b[31m", "a" * 5000,
        "[" * 5000, "\r", "1e400", "-1", "true",
    ]  # fmt: skip
    for place in (0, 1, len(rows) - 1):
        for column in range(len(rows[0])):
            for cell in cells:
                row = [*rows[place][:column], cell, *rows[place][column + 1 :]]
                changed = [*rows[:place], row, *rows[place + 1 :]]
                told = f"row {place + 1}, column {column + 1}: {cell[:9]!r}"
                yield told, "\n".join(map(",".join, changed))


def _of_bytes(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    if not content:
        return
    for _ in range(12):
        place = rng.randrange(len(content))
        yield f"cut at {place}", content[:place]
        flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
        yield f"flipped at {place}", content[:place] + flipped + content[place + 1 :]
        inserted = rng.choice([b"\0", b"\xff", b"\n", b'"', b"{", b"]", b"\\", b"\xed\xa0\x80"])
        yield f"{inserted!r} at {place}", content[:place] + inserted + content[place:]
        yield f"block cut at {place}", content[:place] + content[place + 64 :]
    yield "empty", b""
    yield "a byte order mark", b"\xef\xbb\xbf" + content
    yield "UTF-16", content.decode("utf-8", "replace").encode("utf-16")


def _changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields a value with each of its parts dropped, or put in another's place."""
    for path in paths(value):
        name = ".".join(map(str, path)) or "whole"
        for other in VALUES:
            yield f"{name} = {str(other)[:12]!r}", replaced(value, path, lambda _, o=other: o)
        if path:
            yield f"{name} dropped", without(value, path)
            yield f"{name} renamed", replaced(without(value, path), path[:-1], _add)


def _add(parent: Any) -> Any:
    return {**parent, "surplus": 1} if isinstance(parent, dict) else [*parent, "surplus"]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of every part; of a list those of the first and the last entry."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from paths(part, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1}) if value else ():
            yield from paths(value[index], (*path, index))


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Returns a value with the part at a place as a function changes it."""
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], change)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    """Returns a value without the part at a place."""

    def cut(parent: Any) -> Any:
        if isinstance(parent, dict):
            return {key: part for key, part in parent.items() if key != path[-1]}
        return [part for index, part in enumerate(parent) if index != path[-1]]

    return replaced(value, path[:-1], cut)


def _doubled(value: Any) -> Iterator[tuple[str, str]]:
    for path in paths(value):
        if path and isinstance(path[-1], str):
            text = dumps(replaced(value, path[:-1], lambda parent: {"<doubled>": None, **parent}))
            other = text.replace('"<doubled>": null', f"{json.dumps(path[-1])}: 0")
            yield f"{'.'.join(map(str, path))} twice", other


def dumps(value: Any) -> str:
    """Writes a value as JSON, but for what stands for tokens that aren't."""
    text = json.dumps(value, ensure_ascii=False)
    for token, raw in _RAW.items():
        text = text.replace(f'"{token}"', raw)
    return text
