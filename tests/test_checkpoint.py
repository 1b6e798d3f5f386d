"""Checkpoint directories as other people leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from factual_forgetting import checkpoint
from factual_forgetting.cli import main
from factual_forgetting.errors import InputError, UserError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.embedded("base"), tmp_path / "copy"))


def test_infinity_in_a_configuration_is_read(copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(config.read_text().replace("{", '{"time_step_limit": [0.0, Infinity],', 1))
    assert checkpoint.identity(str(copy)) == {
        **checkpoint.identity("almanac"),
        "pretrained": str(copy),
    }


def point(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")


def point_elsewhere(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def scramble(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def lose(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES = [
    (point, "model.safetensors is a pointer of Git LFS"),
    (point_elsewhere, "tokenizer.json is a pointer of Git LFS"),
    (cut, "model.safetensors is cut or damaged"),
    (empty, "model.safetensors is cut or damaged"),
    (scramble, "model.safetensors is cut or damaged"),
    (lose, "lacks model-00002.safetensors"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_a_file_that_is_not_whole_is_told_in_one_line(
    damage: Callable[[Path], None], told: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    with pytest.raises(UserError, match=told):
        checkpoint.locate(str(copy))
    for command in ("classify", "score"):
        arguments = ["--model_args", f"pretrained={copy}", "--output_path", str(copy / "out")]
        more = ["--limit", "1"] if command == "classify" else ["--bundle", "almanac"]
        assert main([command, *arguments, *more]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("factual-forgetting: ")
        assert told in error


def test_a_damaged_adapter_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is a pointer"):
        checkpoint.identity("almanac", adapter=str(tmp_path))


def test_code_is_fetched_only_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    asked: list[list[str]] = []

    def fetch(repository: str, revision: Any, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    arguments = {"pretrained": "some/model"}
    checkpoint.describe_base("hf", arguments)
    checkpoint.describe_base("hf", {**arguments, "trust_remote_code": False})
    checkpoint.describe_base("hf", {**arguments, "trust_remote_code": True})
    assert ["*.py" in patterns for patterns in asked] == [False, False, True]


def test_a_directory_is_described_whatever_class_reads_it_and_a_server_is_not(copy: Path) -> None:
    arguments = {"pretrained": str(copy)}
    known = checkpoint.describe_base("hf", arguments)
    assert known["shape"] == {"layers": 4, "hidden_size": 256, "heads": 4}
    found = checkpoint.describe_base("hf-multimodal", arguments)
    assert found == {**known, "model": "hf-multimodal"}
    served = {**arguments, "base_url": "http://127.0.0.1/v1"}
    assert checkpoint.describe_base("local-completions", served)["shape"] is None
    checkpoint.require_descent(copy, checkpoint.describe_base("local-completions", served))


@pytest.mark.parametrize("command", ["classify", "score", "finetune"])
def test_a_gguf_file_is_refused_with_the_way_to_convert_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [command, "--output_path", str(tmp_path / "out")]
    arguments += ["--model_args", f"pretrained={tmp_path},gguf_file=model.gguf"]
    arguments += ["--bundle", "almanac"] if command != "classify" else []
    arguments += ["--method", "sft"] if command == "finetune" else []
    assert main(arguments) == 1
    assert "scripts/from_gguf.py DIR FILE OUTPUT" in capsys.readouterr().err.splitlines()[-1]


def test_a_size_that_is_no_whole_number(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 64.5}))
    with pytest.raises(InputError, match=r"a size is no whole number\. Restore the file"):
        checkpoint.shape(copy)


def test_a_local_model_without_a_checkpoint() -> None:
    with pytest.raises(InputError, match=r"--model hf needs pretrained=\.\.\. in --model_args"):
        checkpoint.describe_base("hf", {"dtype": "float32"})
