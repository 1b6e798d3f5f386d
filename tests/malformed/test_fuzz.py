"""A fuzzer that follows the branches that an input takes, over the readers of strangers' files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_RUNS = 4_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["record", "bundle", "results"])
def test_the_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    script = Path(__file__).with_name("fuzz.py")
    command = [
        sys.executable,
        str(script),
        name,
        f"-atheris_runs={_RUNS}",
        "-max_len=64",
        "-len_control=0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    shutil.rmtree(tmp_path / "made", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-4000:]
