"""The equality of engines, on real bases and real questions.

Bases are made by scripts/real_base.sh, in folders of the directory that FACTUAL_FORGETTING_BASES
names.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from test_prefix import groups_of
from test_random_models import answers, greedy_texts

from factual_forgetting.engines.engine import Group
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.facts.sources import load_facts
from vllm_cpu import CPU, real

BASES = Path(os.environ.get("FACTUAL_FORGETTING_BASES", Path.home() / ".cache/factual-forgetting"))
DATA = Path(__file__).parents[2].parent / "shared/data/entityquestions"
RELATIONS = ("P17", "P19", "P36", "P50", "P106", "P131", "P159", "P176", "P264", "P407", "P495")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data is not at {DATA}"),
    pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"]),
]


def base(name: str) -> Path:
    if not (BASES / name / "config.json").is_file():
        pytest.skip(f"{name} is not in {BASES}")
    return BASES / name


@cache
def asked() -> list[Group]:
    return groups_of(1, 25, load_facts(str(DATA), RELATIONS, limit=60))


@cache
def expected(path: Path) -> list[str]:
    return greedy_texts(path, asked())


def test_engines_answer_as_greedy_generation_does(name: str) -> None:
    path = base(name)
    assert len(expected(path)) >= 500
    assert len(set(expected(path))) > 100
    assert answers(path, "lm-eval", asked()) == expected(path)
    assert answers(path, "prefix", asked()) == expected(path)


@real
def test_vllm_answers_as_greedy_generation_does(name: str) -> None:
    engine = open_engine("vllm", "vllm", {"pretrained": str(base(name)), **CPU}, "auto", "cpu")
    found = [answer.text for group in engine.answer(asked(), 16) for answer in group]
    assert found == expected(base(name))
