#!/usr/bin/env python3
"""Runs every command on a small scale in two states of the code and compares what they write.

    .venv/bin/python scripts/compare_states.py [REVISION]

The working tree is held against REVISION (HEAD by default). A change that is meant to change
nothing ends in "same bytes"; otherwise each differing file is named, and the exit status is 1.
Losses stand in the curves, so equal bytes are equal losses. Times are left out, and so is
lm-eval's copy of the task's configuration, which names functions by where they stand.
"""

from __future__ import annotations

import filecmp
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable

PRETRAIN = """\
seed: 1
never: 0.28
exposures_low: 1
exposures_high: 4
vocab_size: 512
hidden_size: 32
intermediate_size: 64
num_hidden_layers: 2
num_attention_heads: 2
num_key_value_heads: 2
block_size: 64
batch_size: 8
learning_rate: 2.0e-3
warmup_ratio: 0.05
weight_decay: 0.0
epochs: 1
bf16: true
threads: 1
"""
SWEEP = """\
bundle: demo/bundle
protocol: quick.yaml
learning_rates: [1.0e-4, 4.0e-4]
strengths: [1.0, 2.0]
seeds: [0]
arms:
  - {name: sft, method: sft}
  - {name: l2, method: l2}
"""
OWN_FACTS = """\
question,answer,relation
Who wrote Dune?,Frank Herbert,author
Who wrote Emma?,Jane Austen,author
Who wrote Emma?,J. Austen,author
Where is Oslo?,Norway,country
Where is Norway?,Norway,country
Where is Lyon?,"France",country
"""
METHODS = [
    ("known_only", ""),
    ("freeze", "trainable=gate_up+lm_head@0"),
    ("freeze", "trainable=ffn@1-2"),
    ("self_distillation", "teacher=same_run,direction=reverse,positions=answer"),
    ("freeze_self_distillation", "trainable=attention,teacher=base"),
    ("l2", "to=snapshot"),
    ("ewc", ""),
    ("lora", "rank=4"),
    ("lora_self_distillation", "rank=4"),
    ("replay", "ratio=0.25"),
    ("known_last", ""),
    ("idk", ""),
    ("context_distillation", ""),
    ("few_shot_distillation", ""),
    ("wise_ft", "points=3"),
    ("early_stop", ""),
]
SOURCE = "--facts almanac --relations country,place_of_birth"
TRAIN = "finetune --bundle demo/bundle --protocol quick.yaml"
FEWSHOT = "factual_forgetting_fewshot"
FRONTIER = "frontier sweep --bundle demo/bundle --output_path frontier.png"


def commands() -> list[str]:
    """Returns the walk: every command, on the smallest sizes that go through all of it."""
    walk = [
        "--help",
        "facts almanac --format json --output_path facts.jsonl",
        "facts own.csv",
        "demo --quick --output_path demo",
        f"classify {SOURCE} --runs 3 --quota known=9,unknown=9,heldout=4 --output_path quota",
        f"classify {SOURCE} --limit 60 --runs 3 --samples 2 --exemplars question "
        "--check-redraw 20 --output_path sampled",
        f"classify {SOURCE} --limit 60 --runs 2 --engine lm-eval --output_path plain",
        "bundle build demo/labels --known 16 --unknown 16 --heldout 8 --validation 4 --replay 4 "
        "--other_relations place_of_birth --output_path other",
        "bundle check demo/bundle",
        "bundle export demo/bundle --output_path d_train.jsonl",
        *(
            f"{TRAIN} --method {method} --method_args {args or 'x='} --output_path runs/{number}"
            for number, (method, args) in enumerate(METHODS)
        ),
        "sweep run sweep.yaml --output_path sweep",
        FRONTIER,
        f"score --model_args demo/runs/sft-0 runs/0 --bundle demo/bundle --tasks {FEWSHOT} "
        "--anatomy --device cpu --output_path fewshot",
        "score --model_args runs/13 --bundle demo/bundle --device cpu --output_path wise",
        f"report fewshot --bundle demo/bundle --tasks {FEWSHOT} --show lost",
        "report demo/results/sft-0 --bundle demo/bundle --control demo/results/known_only-0 "
        "--format json",
        "record wise --bundle demo/bundle --note hello --submitter me --output_path records",
        "record runs/5 --bundle demo/bundle --submitter me --output_path records",
        "validate demo/records --bundle demo/bundle --format json",
        "validate records --bundle demo/bundle --format github",
        *(f"board demo/records --bundle demo/bundle --format {f}" for f in ("latex", "csv")),
        "board demo/records --bundle demo/bundle --format html --output_path site",
        "board demo/records --bundle demo/bundle --format json --plot board.png",
        "diff records demo/records --bundle demo/bundle",
        "drift almanac runs/0 runs/1 --bundle demo/bundle --output_path drift.png",
        "interference --bundle demo/bundle --relation country --facts 24 --keys name identifier "
        "--methods sft self_distillation --most_passes 2 --report --output_path interference",
        "pretrain --facts almanac --limit 60 --config tiny.yaml --output_path tiny",
    ]
    return [command.replace(" --method_args x=", "") for command in walk]


def walk(state: Path, work: Path) -> None:
    """Runs the walk with the package of a state; output and status stand in `stdout/`."""
    work.mkdir()
    (work / "tiny.yaml").write_text(PRETRAIN)
    (work / "sweep.yaml").write_text(SWEEP)
    (work / "own.csv").write_text(OWN_FACTS)
    recipe = next(state.rglob("recipes/almanac-v1.yaml")).read_text()
    short = {"name": "quick", "epochs": "2", "evaluate_every": "2"}
    for key, value in short.items():
        recipe = re.sub(rf"^{key}:.*$", f"{key}: {value}", recipe, flags=re.MULTILINE)
    (work / "quick.yaml").write_text(recipe)
    (work / "stdout").mkdir()
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(state / "benchmark")}
    for number, command in enumerate(commands()):
        sys.stderr.write(f"{number + 1}/{len(commands())} {command}\n")
        done = subprocess.run(
            [PYTHON, "-m", "factual_forgetting.cli", *command.split()],
            cwd=work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        told = "" if done.returncode == 0 else f"\n{done.stderr}"
        (work / "stdout" / f"{number:02}.txt").write_text(
            f"{command}\n{done.returncode}\n{done.stdout}{told}"
        )


_VOLATILE = [
    (re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d[:-]\d\d[:-]\d\d(\.\d+)?)?"), "DATE"),
    (re.compile(r'("(?:date|start_time|end_time|total_evaluation_time_seconds)": )[^,\n]*'), r"\1"),
    (re.compile(r"sha256-[A-Za-z0-9+/=]{44}"), "DIGEST"),
    (re.compile(r'"configs": \{.*?\n  \}', re.DOTALL), '"configs"'),
]


def normalise(work: Path) -> None:
    """Takes times out of what a walk wrote, in place; file names included."""
    for path in sorted(work.rglob("*"), reverse=True):
        if path.name.endswith(".log.json"):
            path.unlink()
        elif path.is_file() and path.suffix in {".json", ".jsonl", ".md", ".html", ".txt", ".js"}:
            text = path.read_text(encoding="utf-8")
            for pattern, told in _VOLATILE:
                text = pattern.sub(told, text)
            path.write_text(text, encoding="utf-8")
        elif path.suffix == ".gz":
            path.write_bytes(gzip.decompress(path.read_bytes()))
    for path in sorted(work.rglob("*_20*T*"), reverse=True):
        path.rename(path.with_name(_VOLATILE[0][0].sub("DATE", path.name)))


def differing(one: Path, other: Path) -> list[str]:
    """Returns the files that are missing on a side or differ."""
    found = {p.relative_to(side) for side in (one, other) for p in side.rglob("*") if p.is_file()}
    _, unequal, missing = filecmp.cmpfiles(one, other, sorted(map(str, found)), shallow=False)
    return sorted([*unequal, *missing])


def export(revision: str | None, state: Path) -> None:
    """Copies a revision, or the working tree, without its history."""
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    if revision is None:
        listed = subprocess.check_output(
            ["git", "ls-files", "-co", "--exclude-standard", "benchmark", "tasks", "leaderboard"],
            cwd=ROOT, text=True,
        )  # fmt: skip
        for name in listed.splitlines():
            if (ROOT / name).is_file():
                (state / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, state / name)
        return
    packed = subprocess.check_output(["git", "archive", revision], cwd=ROOT)
    subprocess.run(["tar", "-x", "-C", str(state)], input=packed, check=True)


def main() -> int:
    """Compares; what was written stays in the temporary folder for a closer look."""
    scratch = Path(tempfile.mkdtemp(prefix="compare-states-"))
    for name, revision in (("before", (sys.argv[1:] or ["HEAD"])[0]), ("after", None)):
        # Both run at the same path, so that paths in their files are equal.
        export(revision, scratch / "state")
        walk(scratch / "state", scratch / "walk")
        normalise(scratch / "walk")
        (scratch / "walk").rename(scratch / name)
    found = differing(scratch / "before", scratch / "after")
    sys.stdout.write("".join(f"differs: {name}\n" for name in found) or "same bytes\n")
    sys.stdout.write(f"see {scratch}/before and {scratch}/after\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
