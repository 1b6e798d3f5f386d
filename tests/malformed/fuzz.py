"""Run by `test_fuzz.py` in a process of its own: the fuzzer changes how modules are imported."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["factual_forgetting"]):
    from specimens import specimens

    from factual_forgetting.errors import UserError, one_line

NAME, ROOT = sys.argv.pop(1), Path("made").resolve()
SPECIMEN = specimens(ROOT)[NAME]
FOLDER = shutil.copytree(SPECIMEN.folder, ROOT / "fuzzed")


def read(data: bytes) -> None:
    """The first byte chooses the file, the others stand in it where the valid ones did."""
    if not data:
        return
    file = SPECIMEN.damaged[data[0] % len(SPECIMEN.damaged)]
    (FOLDER / file).write_bytes(data[1:])
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


def main() -> None:
    """Starts from the valid files."""
    corpus = ROOT / "corpus"
    corpus.mkdir()
    for index, file in enumerate(SPECIMEN.damaged):
        content = bytes([index]) + (SPECIMEN.folder / file).read_bytes()
        (corpus / str(index)).write_bytes(content)
    atheris.Setup([*sys.argv, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
