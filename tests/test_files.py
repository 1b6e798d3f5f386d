import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.errors import InputError, UserError


def killed(job, *args: object) -> None:
    """Runs a job in a process of its own that ends in SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=job, args=args)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def dies_while_writing(path: Path) -> None:
    with files.atomic(path) as stream:
        stream.write(b"half")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    killed(dies_while_writing, tmp_path / "curve.jsonl")
    (tmp_path / ".curve.jsonl.abc123").write_text("another's")
    assert len(list(tmp_path.iterdir())) == 2
    files.write_jsonl(tmp_path / "other.jsonl", [1])
    assert {path.name for path in tmp_path.iterdir()} == {"other.jsonl", ".curve.jsonl.abc123"}


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    with files.atomic(tmp_path / "one") as stream:
        stream.write(b"1")
        files._remove_unfinished.cache_clear()
        files.write_atomic(tmp_path / "two", b"2")
    assert (tmp_path / "one").read_bytes() == b"1"


def dies_with_lock(folder: Path) -> None:
    with files.alone(folder):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_keeps_others_out_and_goes_with_a_killed_command(tmp_path: Path) -> None:
    killed(dies_with_lock, tmp_path)
    refused = pytest.raises(UserError, match="Another command is at work")
    with files.alone(tmp_path), refused, files.alone(tmp_path):
        pass
    with files.alone(tmp_path, shared=True), files.alone(tmp_path, shared=True):
        pass
    assert not any(tmp_path.iterdir())


def test_a_file_beyond_any_honest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGEST", 1 << 20)
    (tmp_path / "run.json").write_text(f'"{"x" * (1 << 20)}"')
    with pytest.raises(InputError, match=r"larger than 1 MiB\. Give another file"):
        files.read_json(tmp_path / "run.json")
