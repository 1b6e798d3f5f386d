"""score, the bare lm_eval command, a completions server and plain generation agree."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.engines.decoding import stop_ids
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import run_lm_eval
from factual_forgetting.scoring.styles import STYLES, TASK
from factual_forgetting.tasks import tasks_dir

pytestmark = pytest.mark.slow
BASE = checkpoint.embedded("base")


@pytest.fixture(scope="module")
def almanac() -> Bundle:
    return load_bundle(locate_bundle("almanac"))


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    return load_causal_lm(BASE, dtype="float32", device="cpu")


def generate(base: tuple[Any, Any], prompts: list[str], longest: int) -> list[str]:
    """Greedy answers by `model.generate`, up to the first newline."""
    import torch

    model, tokenizer = base
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=sorted(stop_ids(model, tokenizer)),
            pad_token_id=tokenizer.pad_token_id,
        )
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.split("\n")[0] for text in texts]


@pytest.fixture(scope="module")
def direct(almanac: Bundle, base: tuple[Any, Any]) -> dict[str, str]:
    items = [item for split in almanac.splits for item in almanac.splits[split]]
    answers = {}
    for start in range(0, len(items), 64):
        chunk = items[start : start + 64]
        texts = generate(base, [STYLES[TASK].prompt(item, almanac) for item in chunk], 16)
        answers |= {item.fact.id: text for item, text in zip(chunk, texts, strict=True)}
    return answers


def agrees(path: Path, bundle: Bundle, direct: dict[str, str], *more: str) -> None:
    """Whether the answers are those of plain generation, and to the facts that were to be asked."""
    answers = read_results(path, bundle).answers
    splits = ("known", "unknown", "heldout", *more)
    asked = [item.fact.id for split in splits for item in bundle.splits[split]]
    assert {key: answers[key].strip() for key in answers} == {k: direct[k].strip() for k in asked}


def test_score(almanac: Bundle, direct: dict[str, str], tmp_path: Path) -> None:
    args = f"pretrained={BASE},dtype=float32"
    written = run_lm_eval(almanac, "hf", args, tmp_path, batch_size="64", device="cpu")
    agrees(written, almanac, direct, "heldout_other")


def test_the_bare_command(almanac: Bundle, direct: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={BASE},dtype=float32", "--batch_size", "64"]
    command += ["--include_path", str(tasks_dir()), "--tasks", TASK]
    command += ["--log_samples", "--output_path", str(tmp_path)]
    # Not from the checkout, whose folder of the same name would be taken for the task.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "benchmark")}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    agrees(tmp_path, almanac, direct)


class Completions(BaseHTTPRequestHandler):
    """OpenAI's completions schema over the base itself."""

    base: tuple[Any, Any]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
        assert asked["temperature"] == 0
        assert "\n" in asked["stop"]
        texts = generate(self.base, prompts, asked["max_tokens"])
        choices = [{"index": i, "text": text} for i, text in enumerate(texts)]
        body = json.dumps({"object": "text_completion", "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(base: tuple[Any, Any]) -> Iterator[str]:
    handler = type("Handler", (Completions,), {"base": base})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1/completions"
        http.shutdown()


def test_a_completions_server(
    almanac: Bundle, direct: dict[str, str], server: str, tmp_path: Path
) -> None:
    pytest.importorskip("tenacity", reason="lm-eval's API models need lm_eval[api]")
    args = f"model=almanac,base_url={server}"
    written = run_lm_eval(almanac, "local-completions", args, tmp_path, batch_size="64")
    agrees(written, almanac, direct, "heldout_other")
    assert read_results(written, almanac).weights_sha256 is None
