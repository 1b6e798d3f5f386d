"""lm-eval's vLLM backend scores as its hf backend does."""

from __future__ import annotations

from pathlib import Path

import pytest

from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.cli import main
from factual_forgetting.scoring.results import Results, find_results, read_results
from vllm_cpu import on_cpu, real

pytestmark = [pytest.mark.slow, real]


def scored(model: str, model_args: str, output: Path) -> Results:
    told = ["score", "--model", model, "--model_args", model_args, "--device", "cpu"]
    assert main([*told, "--bundle", "almanac", "--output_path", str(output)]) == 0
    (path,) = find_results([output])
    return read_results(path, load_bundle(locate_bundle("almanac")))


def test_vllm_and_hf_find_the_same_facts_known(tmp_path: Path) -> None:
    hf = scored("hf", "pretrained=almanac,dtype=float32", tmp_path / "hf")
    vllm = scored("vllm", on_cpu("almanac"), tmp_path / "vllm")
    assert vllm.correct == hf.correct
    assert vllm.answers == hf.answers
    assert {True, False} == set(hf.correct.values())
