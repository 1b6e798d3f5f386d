from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import factual_forgetting
from factual_forgetting import files
from factual_forgetting.cli import main
from factual_forgetting.slick.labelling import load_labels
from stub import contents
from tiny import WORLD, checkpoint_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files.write_jsonl(tmp_path / "facts.jsonl", [fact.row() for fact in WORLD])
    return tmp_path / "facts.jsonl"


def arguments(source: Path, output: Path, *more: str) -> list[str]:
    return [
        *("classify", "--facts", str(source), "--model_args", f"pretrained={checkpoint_of()}"),
        *("--device", "cpu", "--runs", "4", "--min_highly_known", "0"),
        *("--output_path", str(output), *more),
    ]


def test_parts_and_their_merge_equal_one_process(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, tmp_path / "one")) == 0
    assert main(arguments(source, tmp_path / "parts", "--shard", "1/2")) == 0
    assert main(arguments(source, tmp_path / "parts", "--merge")) == 1
    assert "unfinished: shard 1 of 2" in capsys.readouterr().err
    assert main(arguments(source, tmp_path / "parts", "--shard", "2/2")) == 0
    assert main(arguments(source, tmp_path / "parts", "--merge")) == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_the_reference_labels_as_the_default_engine_does(source: Path, tmp_path: Path) -> None:
    fp32 = ("--model_args", f"pretrained={checkpoint_of()},dtype=float32", "--runs", "2")
    marks = []
    for engine in ("prefix", "lm-eval"):
        output = tmp_path / engine
        assert main(arguments(source, output, *fp32, "--engine", engine)) == 0
        marks.append({p.fact.id: (p.correct, p.base) for p in load_labels(output).labels})
    assert marks[0] == marks[1]


def test_a_plan_measures_and_leaves_nothing_behind(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, tmp_path / "plan", "--plan")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["queries"] == told["queries_left"] == _asked(source) * 6
    assert told["tokens_left"] == pytest.approx(told["tokens_a_query"] * told["queries"], abs=1)
    assert told["seconds_left"] > 0
    assert told["memory"] > 0
    assert not (tmp_path / "plan").exists()


def _asked(source: Path) -> int:
    training = {"born": 0, "work": 0}
    for row in files.read_jsonl(source):
        training[row["relation"]] += row["split"] == "train"
    return len(WORLD) - sum(min(15, int(count / 4)) for count in training.values())


def test_quota_redraw_and_classes_are_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--quota", "unknown=10", "--check-redraw", "6", "--samples", "2")
    assert main(arguments(source, tmp_path / "l", *more)) == 0
    told = capsys.readouterr().out
    assert "of 6 facts keep their category" in told
    assert "WeaklyKnown" in told
    settings = files.read_json(tmp_path / "l" / "manifest.json")["settings"]
    assert (settings["retire"], settings["quota"]) == (True, {"unknown": 10})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--quota", "many=3"), "many is none of known, unknown, heldout, validation, replay"),
        (("--runs", "0"), "greater than or equal to 1"),
        (("--quota", "known=-3"), "greater than or equal to 0"),
        (("--quota", "known=1000"), "of 2,000. Lower --quota"),
        (("--output_path", "/dev/null/labels"), "Give another --output_path"),
        (("--shots", "30"), "Give it at least"),
        (("--check-redraw", "100000"), "Lower it"),
        (("--check-redraw", "5", "--shard", "1/2"), "Give it with --merge"),
        (("--merge",), "holds no labelling that was begun"),
        (("--model", "dummy", "--engine", "prefix"), "--model dummy is not hf"),
        (("--model", "vlm"), "model class vlm does not open"),
        (("--model_args", "pretrained=7"), "7 is neither a directory nor a repository"),
        (("--model_args", "pretrained=almanac,dtype=floaty"), "does not load"),
        (("--model_args", "pretrained=almanac,peft=7"), "7 holds no *.safetensors"),
        (("--model_args", "pretrained=almanac,colour=red", "--engine", "prefix"), "no colour"),
        (("--model_args", "pretrained=almanac,colour=red"), "lm-eval's model class hf does not"),
        (("--device", "abacus"), "Check the checkpoint, the dtype and the device"),
    ],
)
def test_bad_input_is_one_line(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    told: str,
) -> None:
    assert main(arguments(source, tmp_path / "bad", *more)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("factual-forgetting: ")
    assert told in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("--shard", "3/2"),
        ("--batch_size", "0"),
        ("--batch_size", "many"),
        ("--ray", "-1"),
        ("--check-redraw", "-3"),
    ],
)
def test_a_value_out_of_range_is_refused(source: Path, name: str, value: str) -> None:
    with pytest.raises(SystemExit):
        main(arguments(source, source.parent, name, value))


@pytest.mark.parametrize(
    "more", [("--plan", "--merge"), ("--shard", "1/2", "--merge"), ("--ray", "2", "--plan")]
)
def test_ways_to_work_that_exclude_each_other_are_refused(
    source: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments(source, source.parent, *more))
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--runs", "5"), "settings.runs was 4, now 5"),
        (("--exemplar_seed", "1"), "settings.seed was 0, now 1"),
        (("--samples", "2"), "settings.samples was 0, now 2"),
        (("--engine", "lm-eval"), 'engine was "prefix", now "lm-eval:hf"'),
        (("--relations", "born"), "facts_sha256 was"),
        (("--model_args", "pretrained={},dtype=float32"), 'now {"dtype": "float32"}'),
        (("--model_args", "pretrained={},peft={}-adapter", "--merge"), "base.weights_sha256 was"),
    ],
)
def test_a_resumed_run_with_other_settings_is_refused_with_the_difference(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    told: str,
) -> None:
    from safetensors.numpy import save_file

    base = checkpoint_of()
    adapter = Path(f"{base}-adapter")
    adapter.mkdir(exist_ok=True)
    save_file({"lora": np.zeros(1)}, adapter / "adapter_model.safetensors")
    assert main(arguments(source, tmp_path / "run", "--shard", "1/2")) == 0
    more = tuple(text.replace("{}", str(base)) for text in more)
    part = () if "--merge" in more else ("--shard", "1/2")
    assert main(arguments(source, tmp_path / "run", *part, *more)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error
    assert "Use another directory" in error


@pytest.mark.slow
def test_accelerate_launch_gives_the_same_labels(source: Path, tmp_path: Path) -> None:
    assert main(arguments(source, tmp_path / "one")) == 0
    package = Path(factual_forgetting.__file__).parents[1]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    subprocess.run(
        [
            *(sys.executable, *launch, "-m", "factual_forgetting.cli"),
            *arguments(source, tmp_path / "two"),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
    )
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
