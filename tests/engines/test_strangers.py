"""Checkpoints and adapters whose files aren't what they seem: told, never scored or run."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.engines import models
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.merging import merge_adapter
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.errors import UserError
from factual_forgetting.protocol.weights import load_weights
from factual_forgetting.scoring.score import run_lm_eval
from small import adapter_on, make_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Tensors = dict[str, Any]


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def rewrite(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def compiled(held: Tensors) -> Tensors:
    return {f"_orig_mod.{name}": tensor for name, tensor in held.items()}


def wrapped(held: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in held.items()}


def bare(held: Tensors) -> Tensors:
    """The model's inside alone: its head is missing."""
    inside = {n: t for n, t in held.items() if n.startswith("model.")}
    return {name.removeprefix("model."): tensor for name, tensor in inside.items()}


def halved(held: Tensors) -> Tensors:
    return dict(list(held.items())[::2])


def reshaped(held: Tensors) -> Tensors:
    name = "model.layers.0.mlp.up_proj.weight"
    return {**held, name: held[name][:-1].clone()}


def biased(held: Tensors) -> Tensors:
    return {**held, "model.layers.0.mlp.up_proj.bias": held["model.norm.weight"].clone()}


def loaded(path: Path) -> object:
    return load_causal_lm(path)


def teaching(path: Path) -> object:
    return load_weights(path, "cpu")


def by_lm_eval(path: Path) -> object:
    return LMEvalEngine("hf", {"pretrained": str(path)}, "4", "cpu")


@pytest.mark.parametrize("load", [loaded, teaching, by_lm_eval])
@pytest.mark.parametrize("change", [compiled, wrapped, bare, halved, biased])
def test_weights_that_find_no_place_are_refused(
    change: Callable[[Tensors], Tensors], load: Callable[[Path], object], copy: Path
) -> None:
    rewrite(copy / WEIGHTS, change)
    with pytest.raises(UserError, match=r"not those of the model .*(missing|unexpected): "):
        load(copy)


@pytest.mark.parametrize("load", [loaded, by_lm_eval])
def test_weights_of_another_shape_are_refused(load: Callable[[Path], object], copy: Path) -> None:
    rewrite(copy / WEIGHTS, reshaped)
    with pytest.raises(UserError, match=r"copy .*|does not open"):
        load(copy)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "falcon", "gemma3", "qwen2"])
def test_tied_weights_and_buffers_may_lack(architecture: str, tmp_path: Path, base: Path) -> None:
    shutil.copytree(base, tmp_path / "own", ignore=shutil.ignore_patterns("model*", "config.json"))
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    make_model(architecture, vocabulary).save_pretrained(tmp_path / "own")
    assert load_causal_lm(tmp_path / "own")


def test_score_and_drift_tell_it_in_a_line(
    copy: Path, bundle: Bundle, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(copy / WEIGHTS, compiled)
    output = ["--output_path", str(tmp_path / "out")]
    score = ["score", "--model_args", str(copy), "--bundle", str(bundle.path), *output]
    for command in (score, ["drift", str(base), str(copy), "--bundle", str(bundle.path)]):
        assert main(command) == 1
        assert "_orig_mod." in capsys.readouterr().err.splitlines()[-1]


def doubled(held: Tensors) -> Tensors:
    return {f"base_model.model.{name}": tensor for name, tensor in held.items()}


def adapter_compiled(held: Tensors) -> Tensors:
    return {n.replace("model.layers", "_orig_mod.model.layers"): t for n, t in held.items()}


@pytest.mark.parametrize("change", [doubled, adapter_compiled, halved])
def test_an_adapter_that_finds_no_place_is_refused(
    change: Callable[[Tensors], Tensors], base: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter_on(base, adapter)
    arguments = {"pretrained": str(base), "peft": str(adapter)}
    assert LMEvalEngine("hf", arguments, "4", "cpu")
    rewrite(adapter / "adapter_model.safetensors", change)
    with pytest.raises(UserError, match=r"missing|unexpected"):
        merge_adapter(arguments, tmp_path / "merged")
    with pytest.raises(UserError, match=r"missing|unexpected"):
        LMEvalEngine("hf", arguments, "4", "cpu")


def shard(folder: Path, where: str = "") -> None:
    """Splits a checkpoint into two files, the second one at another place."""
    held = list(load_file(folder / WEIGHTS).items())
    (folder / WEIGHTS).unlink()
    names = {}
    for name, part in (("a.safetensors", held[::2]), (f"{where}b.safetensors", held[1::2])):
        (folder / name).parent.mkdir(exist_ok=True)
        save_file(dict(part), folder / name, metadata={"format": "pt"})
        names |= {key: name for key, _ in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_what_is_not_loaded_is_not_hashed(copy: Path) -> None:
    before = checkpoint.weights_sha256(copy)
    shutil.copy(copy / WEIGHTS, copy / "stray.safetensors")
    assert checkpoint.weights_sha256(copy) == before
    with pytest.raises(UserError, match=r"stray\.safetensors is no part of the checkpoint"):
        checkpoint.safe_arguments("vllm", {"pretrained": str(copy)})
    shard(copy)
    assert [file.name for file in checkpoint.weight_files(copy)] == [
        "a.safetensors", "b.safetensors",
    ]  # fmt: skip
    assert checkpoint.locate(str(copy)) == copy
    assert load_causal_lm(copy)
    whole = checkpoint.weights_sha256(copy)
    (copy / "stray.safetensors").unlink()
    assert checkpoint.weights_sha256(copy) == whole


@pytest.mark.parametrize("where", ["sub/", "../", "..\\"])
def test_an_index_that_points_elsewhere_is_refused(where: str, copy: Path) -> None:
    shard(copy, where)
    with pytest.raises(UserError, match=r"doesn't name .* that lie beside it"):
        checkpoint.locate(str(copy))


@pytest.mark.parametrize(
    "content", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}},
                {"weight_map": {"a": "b.bin"}}]
)  # fmt: skip
def test_an_index_that_names_no_files_is_refused(content: Any, copy: Path) -> None:
    (copy / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError):
        checkpoint.locate(str(copy))


def with_index(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "kept")
    shard(folder)
    (folder / "kept").rename(folder / WEIGHTS)


def with_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def named_in_config(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "transformers_weights": WEIGHTS}))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def renamed(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_index, "holds both"),
        (with_adapter, "beside config.json"),
        (named_in_config, "names other weights"),
        (pickled, "pickled weights are not read"),
        (renamed, "holds no weights"),
    ],
)
def test_weights_that_could_be_others_are_refused(
    change: Callable[[Path], None], told: str, copy: Path
) -> None:
    change(copy)
    with pytest.raises(UserError, match=told):
        checkpoint.identity(str(copy))


def test_pickles_beside_are_not_read_and_that_is_told(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"not even a pickle")
    checkpoint.locate(str(copy))
    assert "safetensors, not from pytorch_model.bin" in capsys.readouterr().err
    (copy / WEIGHTS).unlink()
    with pytest.raises(UserError):
        by_lm_eval(copy)


def test_an_adapter_of_pickles_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter_on(base, adapter)
    told = checkpoint.identity(str(base), adapter=str(adapter))["weights_sha256"]
    shutil.copy(base / WEIGHTS, adapter / "stray.safetensors")
    assert checkpoint.identity(str(base), adapter=str(adapter))["weights_sha256"] == told
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        checkpoint.identity(str(base), adapter=str(adapter))


@pytest.mark.parametrize(
    "argument",
    [{"subfolder": "x"}, {"delta": "x"}, {"variant": "fp16"}, {"use_safetensors": False},
     {"load_format": "pt"}, {"autogptq": True}],
)  # fmt: skip
def test_arguments_that_read_other_weights_are_refused(
    argument: dict[str, Any], base: Path, bundle: Bundle, tmp_path: Path
) -> None:
    arguments = {"pretrained": str(base), **argument}
    with pytest.raises(UserError, match=f"{next(iter(argument))} in --model_args is refused"):
        checkpoint.describe_base("hf", arguments)
    text = ",".join(f"{key}={value}" for key, value in arguments.items())
    with pytest.raises(UserError, match="is refused"):
        run_lm_eval(bundle, "hf", text, tmp_path / "out")


def code_of_model(folder: Path) -> None:
    """A model type that transformers doesn't know, and a module that leaves a trace."""
    content = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    content |= {"model_type": "own", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "own.py").write_text(OWN.format(trace=str(folder / "ran")))


def code_of_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    names = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    content = {**json.loads(file.read_text()), "tokenizer_class": "Own", "auto_map": names}
    file.write_text(json.dumps(content))
    (folder / "own.py").write_text(OWN.format(trace=str(folder / "ran")))


OWN = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({trace!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Ready(io.StringIO):
    """Somebody who says yes to everything."""

    asked = False

    def readline(self, *given: Any) -> str:
        self.asked = True
        return "y\n"


@pytest.mark.parametrize("flag", ["", ",trust_remote_code=None", ",trust_remote_code=False"])
@pytest.mark.parametrize("change", [code_of_model, code_of_tokenizer])
def test_no_code_of_a_stranger_runs_and_nobody_is_asked(
    change: Callable[[Path], None], flag: str, copy: Path, bundle: Bundle, base: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ready = Ready()
    monkeypatch.setattr(sys, "stdin", ready)
    change(copy)
    named = ["--model_args", f"pretrained={copy}{flag}", "--output_path", str(tmp_path / "out")]
    bundled = ["--bundle", str(bundle.path)]
    commands = [["score", *named, *bundled, "--descends"], ["classify", *named, "--limit", "3"]]
    if not flag:
        commands.append(["drift", str(base), str(copy), *bundled])
    for command in commands:
        assert main(command) in (0, 1)
        last = capsys.readouterr().err.splitlines()[-1]
        assert not (copy / "ran").exists()
        assert not ready.asked
        if change is code_of_model:
            assert "trust_remote_code=True in --model_args" in last


def test_code_that_was_asked_for_is_part_of_the_identity(copy: Path) -> None:
    code_of_model(copy)
    arguments = {"pretrained": str(copy), "trust_remote_code": True}
    told = checkpoint.describe_base("hf", arguments)
    assert told["model_args"] == {"trust_remote_code": True}
    (copy / "own.py").write_text("other = 1")
    assert checkpoint.describe_base("hf", arguments)["code_sha256"] != told["code_sha256"]
    assert "code_sha256" not in checkpoint.describe_base("hf", {"pretrained": str(copy)})


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "tpu", "cpu:x", "", "cpu:-1"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(
    device: str, base: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if hasattr(torch, "mps"):
        monkeypatch.setattr(torch.mps, "device_count", lambda: 0)
    for open_it in (
        lambda: models.found_device(device),
        lambda: load_causal_lm(base, device=device),
        lambda: LMEvalEngine("hf", {"pretrained": str(base)}, "4", device),
        lambda: run_lm_eval(bundle, "hf", str(base), tmp_path / "out", device=device),
    ):
        with pytest.raises(UserError, match=f"no device {device} here. Give --device cpu"):
            open_it()
