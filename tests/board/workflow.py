"""Runs the shell steps of a workflow as its runner does, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).parents[2]
# The command, for drawn runs, which are shorter than the recipe that they name.
_SHORT_RUNS = """
import sys
from factual_forgetting.board.validate import CHECKS
from factual_forgetting.cli import main

del CHECKS["steps"]
sys.exit(main())
"""


def read_workflow(name: str) -> dict[str, Any]:
    """Reads a workflow by the name of its file."""
    return dict(yaml.safe_load((_ROOT / ".github/workflows" / name).read_text()))


def failing_step(name: str, job: str, where: Path, **told: str) -> str | None:
    """Runs the steps of a job, but installations, in a directory; returns the one that fails.

    Args:
        name: File of the workflow.
        job: Its job.
        where: The runner's directory.
        told: What the runner tells in the environment.
    """
    steps = read_workflow(name)["jobs"][job]["steps"]
    command = where / "bin/factual-forgetting"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{_SHORT_RUNS}")
    command.chmod(0o755)
    told["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    told["PYTHONPATH"] = str(_ROOT / "benchmark")
    for step in steps:
        if "run" not in step or "pip install" in step["run"]:
            continue
        shell = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
        at = where / step.get("working-directory", ".")
        if subprocess.run(shell, cwd=at, env=os.environ | told, check=False).returncode:
            return str(step["name"])
    return None
