import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from factual_forgetting import files
from factual_forgetting.board.record import find_records
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("seed", ROOT / "scripts/seed_leaderboard.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def output(world: Bundle, runs: list[Path], tmp_path: Path) -> Path:
    """What a demonstration leaves."""
    shutil.copytree(world.path, tmp_path / "demo/bundle")
    for run in runs:
        shutil.copytree(run, tmp_path / "demo/runs" / run.name)
    return tmp_path / "demo"


def test_one_command_seeds_the_leaderboard(
    script: Any, world: Bundle, runs: list[Path], output: Path, tmp_path: Path
) -> None:
    first = script.seed(output, tmp_path / "leaderboard", "v1")
    before = {path: path.read_bytes() for path in first}
    assert script.seed(output, tmp_path / "leaderboard", "v1") == first
    assert {path: path.read_bytes() for path in first} == before
    records = tmp_path / "leaderboard" / "records"
    assert len(find_records(records)) == len(runs)
    # They hold, with warnings: runs that weren't scored have no answers.
    assert main(["validate", str(records), "--bundle", str(world.path)]) == 3
    official = tmp_path / "leaderboard/bundles/almanac/v1"
    assert files.read_json(official / "manifest.json")["sha256"] == world.sha256


def test_of_a_sweep_the_chosen_runs_are_recorded(
    script: Any, runs: list[Path], output: Path, tmp_path: Path
) -> None:
    chosen = {"arm": {"runs": [f"runs/{run.name}" for run in runs[:3]]}}
    files.write_json(output / "chosen.json", chosen)
    records = script.seed(output, tmp_path / "leaderboard", "v1")
    assert [files.read_json(path)["seed"] for path in records] == [0, 1, 2]


def test_nothing_to_seed_from(script: Any, output: Path, tmp_path: Path) -> None:
    shutil.rmtree(output / "runs")
    with pytest.raises(UserError, match="holds no finished runs"):
        script.seed(output, tmp_path / "leaderboard", "v1")


def test_the_workflow_reads_only_and_knows_no_secret() -> None:
    text = (ROOT / ".github/workflows/submission.yml").read_text()
    workflow = yaml.safe_load(text)
    # YAML 1.1 reads the key `on` as true.
    assert list(workflow[True]) == ["pull_request"]
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in text.replace("no secrets", "")
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", "")
