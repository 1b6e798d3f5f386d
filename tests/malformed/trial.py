"""Puts a case in a specimen's place, and tells how reading ended."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cases import Case, cases
from specimens import Specimen

from factual_forgetting.errors import UserError

_SECONDS = 20


class Hung(Exception):
    """It took so long that a person would have stopped it."""


@contextmanager
def bounded() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_all(
    specimen: Specimen, scratch: Path, most: int | None = None
) -> tuple[Counter[str], list[str]]:
    """Reads the specimen with each of its files damaged in every way, or in `most` of them."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    folder = scratch / specimen.name
    for file in specimen.damaged:
        valid = (specimen.folder / file).read_bytes()
        found = list(cases(file, valid))
        share = None if most is None else max(1, most // len(specimen.damaged))
        step = max(1, len(found) // share) if share else 1
        for case in found[::step]:
            end, told = _end(specimen, folder, case)
            ends[end] += 1
            if end not in ("read", "refused"):
                wrong.append(f"{specimen.name}/{file}, {case.told}: {told}")
    return ends, wrong


def _end(specimen: Specimen, folder: Path, case: Case) -> tuple[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(specimen.folder, folder)
    (folder / case.file).write_bytes(case.content)
    specimen.seal(folder)
    try:
        with bounded():
            specimen.read(folder)
        return "read", ""
    except UserError as error:
        from factual_forgetting import errors

        line = (
            errors.one_line(error) if hasattr(errors, "one_line") else " ".join(str(error).split())
        )
        return (
            ("refused", line)
            if line.isprintable() and len(line) < 2000
            else ("unprintable", line[:200])
        )
    except Hung:
        return "hung", "hung"
    except BaseException as error:
        import traceback

        where = (
            traceback.extract_tb(error.__traceback__)[-1]
            if not isinstance(error, RecursionError)
            else "?"
        )
        ours = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "factual_forgetting" in f.filename
        ]
        place = (
            f"{ours[-1].filename.split('factual_forgetting/')[-1]}:{ours[-1].lineno}"
            if ours
            else str(where)
        )
        return "traceback", f"{type(error).__name__} {str(error)[:80]!r} at {place}"
