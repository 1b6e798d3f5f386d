"""The wheel by itself, in an environment and a directory of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_lists_its_tasks_and_runs_the_quick_demo(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist")]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    bin_dir = tmp_path / "venv" / "bin"
    constraints = str(ROOT / "scripts" / "constraints.txt")
    install = [str(bin_dir / "pip"), "install", "-q", "-c", constraints, f"{wheel}[hf]"]
    subprocess.run(install, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str, warnings: int = 0) -> str:
        done = subprocess.run(
            [str(bin_dir / command[0]), *command[1:]],
            cwd=elsewhere,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, warnings), done.stderr
        return done.stdout

    folder = run("factual-forgetting", "tasks-path").strip()
    assert str(tmp_path / "venv") in folder
    listed = run(
        "python",
        "-c",
        "from lm_eval.tasks import TaskManager; import sys;"
        "m = TaskManager(include_path=sys.argv[1], include_defaults=False);"
        "print(*m.all_tasks)",
        folder,
    )
    for name in ("", "_learning", "_plasticity", "_stability"):
        assert f"factual_forgetting{name}" in listed.split()
    package = run("python", "-c", "import factual_forgetting as f; print(*f.__path__)").strip()
    assert (Path(package) / "py.typed").is_file()
    board = run("factual-forgetting", "demo", "--quick", "--output_path", "out")
    assert "self_distillation" in board
    assert (elsewhere / "out" / "frontier.png").stat().st_size > 10_000
    found = run(
        *("factual-forgetting", "validate", "out/records", "--bundle", "out/bundle"), warnings=3
    )
    assert not [line for line in found.splitlines() if line.startswith("error")]
