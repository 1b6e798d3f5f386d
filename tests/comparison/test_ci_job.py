"""The example of a CI job does what it says: its step is run as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import factual_forgetting
from factual_forgetting import checkpoint, files
from factual_forgetting.facts.almanac import world

EXAMPLE = Path(__file__).parents[2] / "scripts/examples/ci_job.yml"


def run_step(folder: Path, tuned: Path) -> tuple[int, str]:
    """Returns the step's exit status, and what stands in the job's summary."""
    rows = [fact.row() for fact in world() if fact.relation == "country"]
    files.write_jsonl(folder / "facts.jsonl", rows)
    (job,) = yaml.safe_load(EXAMPLE.read_text())["jobs"].values()
    (script,) = (step["run"] for step in job["steps"] if step.get("name") == "compare")
    program = folder / "factual-forgetting"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m factual_forgetting.cli "$@"\n')
    program.chmod(0o755)
    given = {"BASE": str(checkpoint.embedded("base")), "CHECKPOINT": str(tuned)}
    assert {*given, "FACTS"} == {*job["env"]}
    environment = {
        **os.environ,
        **given,
        "FACTS": "facts.jsonl",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(factual_forgetting.__file__).parents[1]),
    }
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    return done.returncode, (folder / "summary.md").read_text()


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """The embedded base with noise on its weights."""
    base = checkpoint.embedded("base")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * weights.std() * torch.randn_like(weights) if weights.ndim > 1 else 0
    model.save_pretrained(tmp_path / "spoilt")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "spoilt")
    return tmp_path / "spoilt"


def test_a_checkpoint_that_lost_facts_fails_the_job(tmp_path: Path, spoilt: Path) -> None:
    status, summary = run_step(tmp_path, spoilt)
    assert status == 3
    assert "| spoilt" in summary
    assert (tmp_path / "forgotten/compare.html").is_file()


@pytest.mark.slow
def test_one_that_lost_none_passes(tmp_path: Path) -> None:
    status, summary = run_step(tmp_path, checkpoint.embedded("base"))
    assert status == 0
    assert "is the base itself" in summary
