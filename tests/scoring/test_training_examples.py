"""The examples of the callback run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from factual_forgetting import checkpoint, files
from factual_forgetting.board.making import Declared, make_record
from factual_forgetting.bundle.manifest import load_bundle

ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmark"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "examples" / name), *arguments]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_a_plain_trainer_gets_a_record(tmp_path: Path) -> None:
    run("plain_trainer.py", "--steps", "3", "--output_path", str(tmp_path / "run"))
    bundle = load_bundle(checkpoint.embedded("bundle"))
    path = make_record(tmp_path / "run", bundle, tmp_path / "records", Declared(submitter="me"))
    assert files.read_json(path)["method"]["name"] == "plain-trainer"


@pytest.mark.slow
def test_a_lora_of_trl_is_watched(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    told = run("trl_lora.py", "--steps", "12", "--output_path", str(tmp_path))
    assert [line.split()[1] for line in told.splitlines() if line.startswith("step")] == [
        "0", "10", "12",
    ]  # fmt: skip
    assert (tmp_path / "adapter_model.safetensors").is_file()
