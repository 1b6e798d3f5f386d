"""What users are told where nothing else of the engines' tests tells it."""

import sys
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.engines import merging
from factual_forgetting.engines.loading import load_adapter
from factual_forgetting.errors import PackageError, UserError


def test_an_adapter_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PackageError, match=r"Install it: pip install peft"):
        load_adapter(None, tmp_path)


def test_an_adapter_that_does_not_load(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    files.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(base)})
    (adapter / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")

    def fail(*given: object, **named: object) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(merging, "load_model", fail)
    arguments = {"pretrained": str(base), "peft": str(adapter)}
    told = r"adapter does not load on .* \(.*no such layer\)\. Check the checkpoint, the dtype"
    with pytest.raises(UserError, match=told):
        merging.merge_adapter(arguments, tmp_path / "merged")
