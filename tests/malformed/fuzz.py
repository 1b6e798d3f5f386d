"""Run by `test_fuzz.py` in a process of its own: the fuzzer changes how modules are imported."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["factual_forgetting"]):
    from cases import VALUES, dumps, paths, replaced, without
    from specimens import specimens

    from factual_forgetting.errors import UserError, one_line

NAME, ROOT = sys.argv.pop(1), Path("made").resolve()
SPECIMEN = specimens(ROOT)[NAME]
FOLDER = shutil.copytree(SPECIMEN.folder, ROOT / "fuzzed")


def read(data: bytes) -> None:
    """Changes a few parts of one file, as the data choose, and reads it."""
    choice = atheris.FuzzedDataProvider(data)
    file = choice.PickValueInList(list(SPECIMEN.damaged))
    content = (SPECIMEN.folder / file).read_bytes()
    packed = file.endswith(".gz")
    plain = changed(gzip.decompress(content) if packed else content, choice)
    (FOLDER / file).write_bytes(gzip.compress(plain, 1) if packed else plain)
    try:
        SPECIMEN.seal(FOLDER)
        SPECIMEN.read(FOLDER)
    except UserError as error:
        if not one_line(error).isprintable():
            raise ValueError("its message can't be printed") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # Which the command line tells as it stands.
            raise
    finally:
        for name in SPECIMEN.damaged:  # Sealing may have changed others.
            shutil.copy(SPECIMEN.folder / name, FOLDER / name)


def changed(content: bytes, choice: atheris.FuzzedDataProvider) -> bytes:
    """Puts other values in the place of parts of a line of JSON, or of the whole file."""
    lines = [content] if content.startswith(b"{\n") else content.splitlines()
    place = choice.ConsumeIntInRange(0, len(lines) - 1) if lines else 0
    value = json.loads(lines[place]) if lines else {}
    for _ in range(choice.ConsumeIntInRange(1, 3)):
        path = choice.PickValueInList(list(paths(value)))
        kind = choice.ConsumeIntInRange(0, 5)
        if kind == 0 and path:
            value = without(value, path)
            continue
        other = (
            choice.PickValueInList(list(VALUES)) if kind < 3
            else choice.ConsumeUnicode(8) if kind == 3
            else choice.ConsumeInt(9) if kind == 4
            else choice.ConsumeFloat()
        )  # fmt: skip
        value = replaced(value, path, lambda _, other=other: other)
    lines[place : place + 1] = [dumps(value).encode("utf-8", "surrogatepass")]
    return b"\n".join(lines)


def main() -> None:
    """Takes libFuzzer's arguments, after the specimen's name."""
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
