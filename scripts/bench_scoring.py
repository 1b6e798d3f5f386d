"""What scoring costs beside the model: prompts, start-up, and three checkpoints in one process.

    python scripts/bench_scoring.py [--documents 5000]

Prompt building is lm-eval's own code on a model that answers at once, so that everything but
the model is measured: our few-shot task, whose prompts are baked, beside the same prompts
built by lm-eval from exemplars through a Jinja template.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.engines.prompts import MAX_NEW_TOKENS
from factual_forgetting.scoring.styles import FEWSHOT
from factual_forgetting.scoring.task import task_documents
from factual_forgetting.tasks import tasks_dir

GENERATION = {"until": ["\n"], "do_sample": False, "max_gen_toks": MAX_NEW_TOKENS}


def rows(count: int) -> list[dict[str, Any]]:
    """Documents of the embedded bundle, repeated."""
    bundle = load_bundle(locate_bundle("almanac"))
    found = task_documents(bundle, "heldout", FEWSHOT, None, None)
    return [found[index % len(found)] for index in range(count)]


def dataset(count: int, **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    bundle = load_bundle(locate_bundle("almanac"))
    shots = [fact.row() for facts in bundle.exemplars.values() for fact in facts][:3]
    return {"test": Dataset.from_list(rows(count)), "fewshot": Dataset.from_list(shots)}


def task(count: int, **settings: Any) -> dict[str, Any]:
    return {
        "task": "bench",
        "custom_dataset": lambda **_: dataset(count),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answers",
        "generation_kwargs": dict(GENERATION),
        **settings,
    }


def prompt_seconds(config: dict[str, Any]) -> tuple[float, int]:
    """CPU seconds of building all requests, and their number."""
    from lm_eval.api.task import ConfigurableTask

    built = ConfigurableTask(config=config)
    if built.config.num_fewshot:
        built.set_fewshot_seed(seed=1234)
    start = time.process_time()
    built.build_all_requests(rank=0, world_size=1)
    return time.process_time() - start, len(built.instances)


def seconds(*command: str) -> str:
    """Wall and CPU seconds of a command."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return f"{wall:.1f} s, {cpu:.1f} s of CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=5000)
    count = parser.parse_args().documents
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    jinja = {
        "doc_to_text": "Q: {{question}}\nA:",
        "target_delimiter": " ",
        "fewshot_split": "fewshot",
        "num_fewshot": 3,
        "fewshot_config": {"sampler": "first_n"},
    }
    found = []
    for name, settings in (
        ("baked column (ours)", {"doc_to_text": "prompt", "num_fewshot": 0}),
        ("lm-eval's Jinja, 3 exemplars", jinja),
    ):
        spent, requests = prompt_seconds(task(count, **settings))
        found.append([f"prompts: {name}", f"{1000 * spent / requests:.3f} ms a document"])
    bundle = load_bundle(locate_bundle("almanac"))
    start = time.process_time()
    made = task_documents(bundle, "heldout", FEWSHOT, None, None)
    each = 1000 * (time.process_time() - start) / len(made)
    found.append(["documents from a bundle", f"{each:.3f} ms a document"])
    command = [sys.executable, "-m", "factual_forgetting.cli"]
    found.append(["factual-forgetting --help", seconds(*command, "--help")])
    with tempfile.TemporaryDirectory() as folder:
        three = []
        for name in "abc":
            three.append(str(Path(folder) / name))
            Path(three[-1]).symlink_to(checkpoint.embedded("base"))
        command += ["score", "--model_args", *three, "--output_path", f"{folder}/results"]
        found.append(["three checkpoints of the almanac", seconds(*command)])
    found.append(["tasks indexed", str(len(list(tasks_dir().rglob("*.yaml"))))])
    print(tabulate(found, tablefmt="github"))


if __name__ == "__main__":
    main()
