from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.comparison.contestants import read_contestants, reading_notes
from factual_forgetting.errors import InputError, UserError
from small import adapter_on


def test_an_adapter_goes_on_the_base_or_on_the_one_that_it_names(
    base: Path, tmp_path: Path
) -> None:
    adapter_on(base, tmp_path / "lora")
    given = [f"base,peft={tmp_path}/lora", f"{tmp_path}/lora", f"{base},dtype=bfloat16"]
    root, *tuned = read_contestants(str(base), given[:2], "hf", "dtype=float32")
    assert [one.arguments for one in tuned] == [
        {"pretrained": str(base), "dtype": "float32", "peft": str(tmp_path / "lora")}
    ] * 2
    assert tuned[0].identity == tuned[1].identity != root.identity
    assert root.arguments == {"pretrained": str(base), "dtype": "float32"}
    vllm = read_contestants(str(base), given[:1], "vllm", "")[1]
    assert vllm.arguments == {"pretrained": str(base), "lora_local_path": str(tmp_path / "lora")}


def test_what_an_adapter_is_scaled_by_is_part_of_what_it_is(base: Path, tmp_path: Path) -> None:
    adapter_on(base, tmp_path / "lora")
    given = [f"base,peft={tmp_path}/lora"]
    before = read_contestants(str(base), given, "hf", "")[1].identity
    config = tmp_path / "lora" / "adapter_config.json"
    files.write_json(config, {**files.read_json(config), "lora_alpha": 1})
    assert read_contestants(str(base), given, "hf", "")[1].identity != before


def test_names_tell_models_apart(base: Path) -> None:
    models = read_contestants(str(base), [f"pretrained={base}", str(base)], "hf", "")
    assert len({one.name for one in models}) == 3


@pytest.mark.parametrize(
    ("checkpoints", "told"),
    [
        ([], "Nothing to compare with the base"),
        (["no-such-place"], "neither a directory nor a repository in reach"),
        (["base,peft=no-such-place"], "holds no"),
        (["base,dtype"], "'dtype' is not key=value"),
        (["{},truncation=True"], "truncation in --model_args is refused"),
    ],
)
def test_what_is_no_checkpoint(base: Path, checkpoints: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_contestants(str(base), [text.format(base) for text in checkpoints], "hf", "")


def test_pickled_adapters_are_not_read(base: Path, tmp_path: Path) -> None:
    adapter_on(base, tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora/adapter_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        read_contestants(str(base), [f"base,peft={tmp_path}/lora"], "hf", "")


def test_notes_tell_where_a_checkpoint_reads_something_else(
    base: Path, sft: Path, tmp_path: Path
) -> None:
    given = [str(base), f"{base},dtype=bfloat16", str(sft)]
    models = read_contestants(str(base), given, "hf", "")
    told = reading_notes(models[0], models[1:])
    assert "is the base itself" in told[0]
    assert "has the base's weights, read in another way" in told[1]
    assert len(told) == 2
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = files.read_json(other / "tokenizer.json", ours=False)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    files.write_json(other / "tokenizer.json", tokenizer)
    models = read_contestants(str(base), [str(other)], "hf", "")
    assert any("has another tokenizer" in note for note in reading_notes(models[0], models[1:]))


def test_behind_a_server_only_name_and_arguments_are_known() -> None:
    given = ["model=tuned,base_url=http://127.0.0.1:1/v1/completions"]
    base = "model=plain,base_url=http://127.0.0.1:1/v1/completions"
    models = read_contestants(base, given, "local-completions", "num_concurrent=4")
    assert models[0].identity != models[1].identity
    assert models[1].path is None
    assert reading_notes(models[0], models[1:]) == []


def test_a_gguf_file_is_to_be_converted(base: Path) -> None:
    with pytest.raises(InputError, match="from_gguf"):
        read_contestants(str(base), [f"pretrained={base},gguf_file=x.gguf"], "hf", "")
