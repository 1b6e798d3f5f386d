"""What a record says is enough to make it again."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic import ME, drawn, publish

import factual_forgetting
from factual_forgetting import files
from factual_forgetting.board.making import make_record
from factual_forgetting.board.record import find_records, load_record
from factual_forgetting.board.remake import remake_commands
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import parser
from factual_forgetting.modelargs import parse_settings
from factual_forgetting.protocol.recipe import Protocol, load_protocol
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.scoring.styles import FEWSHOT


def test_the_printed_commands_make_the_record_again(
    bundle: Bundle, protocol: Protocol, results: Path, tmp_path: Path
) -> None:
    """A recipe of one's own, at a rate of its own, on a bundle that isn't the embedded one."""
    first, _ = load_record(make_record(results, bundle, tmp_path / "published", ME))
    (tmp_path / f"bundle-{bundle.sha256[:12]}").symlink_to(bundle.path)
    command = shlex.join([sys.executable, "-m", "factual_forgetting.cli"])
    lines = [f'factual-forgetting() {{ {command} "$@"; }}', "set -e", *remake_commands(first)]
    ours = {**os.environ, "PYTHONPATH": str(Path(factual_forgetting.__file__).parents[1])}
    subprocess.run(["bash", "-c", "\n".join(lines)], cwd=tmp_path, env=ours, check=True)
    (path,) = find_records(tmp_path / "records")
    again, _ = load_record(path)
    for name in ("id", "weights_sha256", "outcomes", "resolved_protocol", "metrics", "submitter"):
        assert getattr(again, name) == getattr(first, name), name


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("idk", {"answer": "I don't know, sorry; $(rm -rf ~) `x` 1.0"}),
        ("freeze", {"trainable": ["mlp.*(up|gate)+", "layers@0,1"]}),
        ("self_distillation", {"teacher": "base", "weight": 0.3, "tau": 1.0}),
        ("lora", {"target": "None", "alpha": 76.8}),
    ],
)
def test_settings_are_what_they_were(
    world: Bundle, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    full = resolve(method, settings).model_dump(mode="json")
    record, _ = load_record(publish(tmp_path, world, drawn(world, 1, 0.3, 0.1), method, 5, full))
    train = shlex.split(remake_commands(record)[0])
    told = parser().parse_args(train[1:])
    assert (told.method, told.seed, told.protocol) == (method, 5, "almanac-v1")
    again = resolve(told.method, parse_settings(told.method_args)).model_dump(mode="json")
    assert again == full


def test_a_rate_of_the_grid_travels(world: Bundle, tmp_path: Path) -> None:
    arm = ("sft", 0, {}, "almanac-v2")
    path = publish(tmp_path, world, drawn(world, 1, 0.3, 0.1), *arm, learning_rate=8e-4)
    write, train, *_ = remake_commands(load_record(path)[0])
    subprocess.run(["bash", "-c", write], cwd=tmp_path, check=True)
    made = load_protocol(str(tmp_path / parser().parse_args(shlex.split(train)[1:]).protocol))
    assert made == load_protocol("almanac-v2").model_copy(update={"learning_rate": 8e-4})


def test_what_finetune_didn_t_make_is_scored_again(world: Bundle, tmp_path: Path) -> None:
    record, _ = load_record(publish(tmp_path, world, drawn(world, 1, 0.3, 0.1)))
    told = {"protocol": None, "repository": "me/model", "style": FEWSHOT, "trained": False}
    other = record.model_copy(update=told)
    other.method.settings["rank"] = 8
    score, again = remake_commands(other)
    told = parser().parse_args(shlex.split(score)[1:])
    assert told.model_args == ["pretrained=me/model"]
    assert told.tasks == [FEWSHOT]
    told = parser().parse_args(shlex.split(again)[1:])
    assert (told.method, told.tasks, told.trained) == ("sft", FEWSHOT, False)
    assert parse_settings(told.method_args) == {"rank": 8}


@pytest.mark.parametrize("text", ['{"a": ', "{" * 100_000, '{"a": NaN}'])
def test_settings_that_are_no_json_are_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        parse_settings(text)
    assert files.loads('{"a": 1}') == parse_settings('{"a": 1}')
