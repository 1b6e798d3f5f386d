"""Puts a case in a specimen's place, and tells how reading it ended."""

from __future__ import annotations

import errno
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cases import Case, cases
from specimens import Specimen

from factual_forgetting.errors import UserError, one_line

# A person would have stopped it by then; an honest reader takes milliseconds.
_SECONDS, _MEMORY = 60, 8 << 30
_LONGEST = 3000
FINE = ("read", "refused")


class HungError(Exception):
    """It took so long that a person would have stopped it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what hangs or asks for more memory than there is, so that it is one failure."""

    def ring(*_: Any) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, hard))
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def try_cases(
    specimen: Specimen, scratch: Path, most: int | None = None
) -> tuple[Counter[str], list[str]]:
    """Reads a specimen with each of its files damaged in every way, or in about `most` ways.

    Returns how many ended how, and what was wrong: neither read nor refused in one line.
    """
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    for file in specimen.damaged:
        found = list(cases(file, (specimen.folder / file).read_bytes()))
        step = len(found) * len(specimen.damaged) // most if most else 1
        for case in found[:: max(1, step)]:
            end, told = _end(specimen, scratch, case)
            ends[end] += 1
            if end not in FINE:
                wrong.append(f"{specimen.name}, {file}, {case.told}: {end}, {told}")
    return ends, wrong


def _end(specimen: Specimen, scratch: Path, case: Case) -> tuple[str, str]:
    folder = scratch / specimen.name
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(specimen.folder, folder)
    (folder / case.file).write_bytes(case.content)
    specimen.seal(folder)
    try:
        with bounded():
            specimen.read(folder)
    except UserError as error:
        line = one_line(error)
        fine = line.isprintable() and 0 < len(line) < _LONGEST
        return ("refused" if fine else "unprintable"), line[:200]
    except HungError:
        return "hung", ""
    except OSError as error:
        # Which the command line tells in one line, as it stands.
        return ("refused" if error.errno == errno.ENAMETOOLONG else "traceback"), repr(error)[:100]
    except BaseException as error:
        return "traceback", f"{error!r:.100} in {_place(error)}"
    return "read", ""


def _place(error: BaseException) -> str:
    ours = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "factual_forgetting" in frame.filename
    ]
    return ours[-1] if ours else "other code"
