"""The commands of the documents: all can be parsed, and README's run as they stand, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import factual_forgetting
from factual_forgetting import checkpoint, files
from factual_forgetting.cli import parser
from factual_forgetting.facts.almanac import world

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for folder in ("", "benchmark", "leaderboard")
    for path in sorted((ROOT / folder).glob("*.md" if not folder else "**/*.md"))
]
# The smallest world that the commands can be run in: a base that is at hand, and few facts.
SMALLER = {
    "Qwen/Qwen2.5-1.5B": str(checkpoint.embedded("base")),
    "--facts entityquestions": "--facts facts.jsonl",
    "--known 8000 --unknown 8000": (
        "--known 24 --unknown 24 --validation 4 --replay 4 --heldout 16"
    ),
    "CHECKPOINT": "runs/sd",
    "NAME": "me",
    "pretrained=runs/sd --tasks factual_forgetting": (
        "pretrained=runs/sd,dtype=float32 --device cpu --tasks factual_forgetting"
    ),
}


def blocks(path: Path) -> list[str]:
    """The commands of each code block, those of several lines in one."""
    found = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```", path.read_text("utf-8"), re.M | re.S)
    return [text.replace("\\\n", " ") for text in found]


def commands(path: Path) -> list[str]:
    lines = (line.strip() for text in blocks(path) for line in text.splitlines())
    return [line for line in lines if line.startswith("factual-forgetting ")]


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if commands(path)], ids=lambda path: str(path.name)
)
def test_commands_of_documents_can_be_parsed(path: Path) -> None:
    for line in commands(path):
        words = shlex.split(line, comments=True)[1:]
        if not {"--help", "--version", "..."} & {*words}:
            parser().parse_args(words)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_order(tmp_path: Path) -> None:
    relations = {"country", "place_of_birth"}
    facts = [fact for fact in world() if fact.relation in relations]
    files.write_jsonl(tmp_path / "facts.jsonl", (fact.row() for fact in facts))
    (block,) = (text for text in blocks(ROOT / "README.md") if "bundle build" in text)
    for large, small in SMALLER.items():
        assert large in block
        block = block.replace(large, small, 1)
    lines = [line for line in block.splitlines() if line and not line.startswith(("#", "pip"))]
    assert len(lines) == 11
    script = ["set -eu", 'warned() { [ "$1" -eq 3 ] || exit "$1"; }']
    # Warnings of one's own bundle and single seed are no errors.
    script += [f"{line} || warned $?" if " validate " in line else line for line in lines]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=_with_commands(tmp_path / "bin"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "self_distillation" in done.stdout


def _with_commands(folder: Path) -> dict[str, str]:
    """An environment whose path begins with the two commands of this Python."""
    folder.mkdir()
    for name, module in (
        ("factual-forgetting", "factual_forgetting.cli"),
        ("lm_eval", "lm_eval"),
    ):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(factual_forgetting.__file__).parents[1]),
    }
