"""The whole path on the embedded world: labels, bundle, six arms, scores, records, board."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.board import bundles, making, record, tables
from factual_forgetting.board.board import curves_of, make_board
from factual_forgetting.board.page import BOARD
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.manifest import MANIFEST, load_bundle
from factual_forgetting.facts.sources import load_facts
from factual_forgetting.plotting import require_image
from factual_forgetting.protocol.recipe import Protocol, load_protocol
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.scoring.frontier import draw_frontier
from factual_forgetting.slick.labelling import SlickConfig, load_labels

_FIGURE = "frontier.png"
_ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "known_only": ("known_only", {}),
    "attention_only": ("freeze", {"trainable": "attention"}),
    "ffn_only": ("freeze", {"trainable": "ffn"}),
    "distil_base": ("self_distillation", {"teacher": "base", "tau": 1.0}),
    "distil_snapshot": ("self_distillation", {"teacher": "snapshot", "tau": 0.5}),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """How large a demonstration is: relations (none for all), labelling, splits, recipe, seeds."""

    relations: tuple[str, ...]
    slick: SlickConfig
    bundle: BundleConfig
    protocol: Protocol
    seeds: tuple[int, ...]


def _full_plan() -> _Plan:
    sizes = BundleConfig(
        known=300, unknown=300, heldout=500, validation=60, replay=60, other_relations=("shelf",)
    )
    return _Plan((), SlickConfig(), sizes, load_protocol("almanac-v2"), (0, 1))


def _quick_plan() -> _Plan:
    sizes = BundleConfig(known=32, unknown=32, heldout=32, validation=8, replay=8)
    short = {"name": "almanac-quick", "epochs": 2, "evaluate_every": 2}
    protocol = load_protocol("almanac-v2").model_copy(update=short)
    return _Plan(("country", "place_of_birth"), SlickConfig(runs=4), sizes, protocol, (0,))


def run_demo(output: Path, *, quick: bool = False) -> None:
    """Writes the whole path, or its smallest version, to a directory; a second start resumes."""
    outputs.require_folder(output)
    outputs.require_file(output / BOARD, outputs.json_with("format", "records", "bundles"))
    require_image(output / _FIGURE)
    with outputs.taken(output):
        _run(output, _quick_plan() if quick else _full_plan())


def _run(output: Path, plan: _Plan) -> None:
    jobs = [(name, seed) for seed in plan.seeds for name in _ARMS]
    with _pool(1) as pool:
        pool.submit(_prepare, output, plan).result()
    # One bar for all: those of several workers would write over each other.
    os.environ["TQDM_DISABLE"] = "1"
    with _pool(min(len(jobs), os.cpu_count() or 1, 4)) as pool:
        futures = [pool.submit(_arm, output, plan, name, seed) for name, seed in jobs]
        done = tqdm(as_completed(futures), total=len(jobs), desc="train and score", unit="run")
        for future in done:
            future.result()
    records = [future.result() for future in futures]
    bundle = load_bundle(output / "bundle")
    reference = {bundle.sha256: bundles.reference_of(bundle)}
    board = make_board(map(record.load_record, records), reference)
    files.write_json(output / BOARD, board)
    draw_frontier(curves_of(board["bundles"][0]), output / _FIGURE)
    sys.stdout.write(f"{tables.markdown(board)}\n\n{_closing(output)}\n")


def _pool(workers: int) -> ProcessPoolExecutor:
    """Makes workers that compute with one thread: the number of cores changes no result."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from factual_forgetting.engines.models import quiet

    torch.set_num_threads(1)
    quiet()


def _prepare(output: Path, plan: _Plan) -> None:
    from factual_forgetting.engines.models import load_causal_lm
    from factual_forgetting.engines.prefix import PrefixEngine
    from factual_forgetting.slick.classify import classify

    labels, bundle = output / "labels", output / "bundle"
    if (bundle / MANIFEST).exists():
        return
    base = checkpoint.identity(checkpoint.ALMANAC)
    model, tokenizer = load_causal_lm(checkpoint.locate(checkpoint.ALMANAC))
    facts = load_facts("almanac", plan.relations)
    classify(facts, PrefixEngine(model, tokenizer), plan.slick, base, labels)
    build_bundle(load_labels(labels), plan.bundle, bundle)


def _arm(output: Path, plan: _Plan, name: str, seed: int) -> Path:
    from factual_forgetting.protocol.run import Run
    from factual_forgetting.protocol.train import finetune
    from factual_forgetting.scoring.score import run_lm_eval

    bundle = load_bundle(output / "bundle")
    method, settings = _ARMS[name]
    run, results = (output / part / f"{name}-{seed}" for part in ("runs", "results"))
    told = Run(bundle, plan.protocol, method, resolve(method, settings), seed)
    finetune(told, run, progress=False)
    if not any(results.rglob("results_*.json")):
        run_lm_eval(bundle, "hf", str(run), results, batch_size="256", device="cpu")
    declared = making.Declared(submitter="demo", trials=1)
    return making.make_record(results, bundle, output / "records", declared)


def _closing(output: Path) -> str:
    return f"""Written to {output}:
  labels/       what the base knows, by few-shot configuration
  bundle/       D_Known, D_Unk, D_Held of that base
  runs/         checkpoints with their curves
  results/      lm-eval's own output for each
  records/      one record a run
  board.json    the table above
  frontier.png  stability against plasticity over training

Next:
  factual-forgetting validate {output}/records --bundle {output}/bundle
  factual-forgetting finetune --bundle {output}/bundle --protocol almanac-v2 \\
      --method self_distillation --method_args teacher=base,weight=2 --output_path my-run
  factual-forgetting score --model_args my-run --bundle {output}/bundle --output_path my-results
  factual-forgetting record my-results --bundle {output}/bundle --submitter me \\
      --output_path {output}/records
  factual-forgetting board {output}/records"""
