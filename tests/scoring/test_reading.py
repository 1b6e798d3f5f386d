"""What changes what a model reads is told in the report, hashed as used, or refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.scoring.reading import require_room
from factual_forgetting.scoring.report import make_report
from factual_forgetting.scoring.results import Results, read_results
from factual_forgetting.scoring.score import run_lm_eval
from factual_forgetting.scoring.styles import TASK
from factual_forgetting.scoring.task import load_split, tokenizer_sha256


@pytest.fixture
def retold(bundle: Bundle, sft: Path, tmp_path: Path) -> Path:
    """A tokenizer that cuts texts elsewhere and adds no BOS."""
    other = shutil.copytree(sft, tmp_path / "other")
    content = files.read_json(other / "tokenizer.json")
    files.write_json(
        other / "tokenizer.json", content | {"pre_tokenizer": None, "post_processor": None}
    )
    return other


def notes(bundle: Bundle, results: Results) -> str:
    return " ".join(make_report(bundle, results).summary["notes"])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("max_length=24", "leaves 8 for a prompt, and prompts have .* would cut their heads"),
        ("max_length=16", "leaves 0 for a prompt"),
        ("truncation=True", "truncation in --model_args is refused"),
    ],
)
def test_prompts_are_never_cut(
    bundle: Bundle, sft: Path, tmp_path: Path, argument: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        run_lm_eval(bundle, "hf", f"pretrained={sft},{argument}", tmp_path, batch_size="16")
    # The bare lm_eval gives them to the task.
    name, value = argument.split("=")
    given = {name: int(value) if value.isdigit() else True}
    with pytest.raises(UserError, match=told):
        load_split("heldout", TASK, str(bundle.path), pretrained=str(sft), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"max_length": 24}, "would cut their heads"),
        ({"model_args": "pretrained=somewhere,truncation=True"}, "truncation .* is refused"),
    ],
)
def test_results_of_cut_prompts_are_refused(
    bundle: Bundle, results: Path, tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    path = shutil.copytree(results, tmp_path / "r")
    file = next(path.glob("results_*.json"))
    content = files.read_json(file)
    assert content["max_length"] == 256
    content |= {key: value for key, value in changed.items() if key in content}
    content["config"] |= {key: value for key, value in changed.items() if key not in content}
    files.write_json(file, content)
    with pytest.raises(UserError, match=told):
        read_results(path, bundle)


def test_prompts_are_counted_in_tokens_where_bytes_do_not_tell(base: Path) -> None:
    prompts = ["Q: Which country is it?\nA:"]
    with pytest.raises(UserError, match="have up to 26 bytes"):
        require_room(prompts, 32, 16, None)
    require_room(prompts, 32, 16, base)
    with pytest.raises(UserError, match=r"have 1\d tokens"):
        require_room(prompts, 24, 16, base)


def test_another_tokenizer_is_hashed_as_used_and_told(
    bundle: Bundle, sft: Path, retold: Path, tmp_path: Path
) -> None:
    args = f"pretrained={sft},dtype=float32,tokenizer={retold}"
    read = read_results(run_lm_eval(bundle, "hf", args, tmp_path / "r", batch_size="16"), bundle)
    assert read.tokenizer_sha256 == tokenizer_sha256(retold) != tokenizer_sha256(sft)
    assert read.asked_with == {"tokenizer": str(retold)}
    told = notes(bundle, read)
    assert f"asked with tokenizer={retold}, the base with no such argument" in told
    assert "tokenizer differs from the base's" in told
    assert "special tokens [] around a text, the base's [1]" in told


def test_weights_that_other_arguments_name_are_not_hashed(bundle: Bundle, sft: Path) -> None:
    def hashed(**given: str) -> object:
        rows = load_split("heldout", TASK, str(bundle.path), pretrained=str(sft), **given)["test"]
        return rows[0]["weights_sha256"]

    assert hashed()
    assert not hashed(lora_local_path="adapter")
    assert not hashed(subfolder="inner")


def test_arguments_are_held_against_those_of_the_base(bundle: Bundle, results: Path) -> None:
    read = read_results(results, bundle)
    assert read.asked_with == {}  # The precision is told by itself.
    asked = dataclasses.replace(read, asked_with={"add_bos_token": True})
    assert "asked with add_bos_token=True, the base with no such" in notes(bundle, asked)
    assert make_report(bundle, asked).summary["made_with"]["asked_with"] == asked.asked_with
    base = {**bundle.manifest["base"], "model_args": {"dtype": "float32", "add_bos_token": True}}
    same = dataclasses.replace(bundle, manifest={**bundle.manifest, "base": base})
    assert notes(same, asked) == ""
    assert "asked with no such argument, the base with add_bos_token=True" in notes(same, read)
