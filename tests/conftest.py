"""Small models and bundles, made here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raised
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.pretrain import build_tokenizer
from factual_forgetting.protocol.recipe import Protocol, load_protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import MethodSettings
from factual_forgetting.protocol.train import finetune
from factual_forgetting.scoring.score import run_lm_eval
from network import REACHED, refuse
from small import RELATIONS, make_labels, make_model

sys.addaudithook(refuse)
if "RAISED" in os.environ:
    raised.watch(Path(os.environ["RAISED"]))


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fails a test that reached for the network, even if the code under test got over it."""
    yield
    reached = list(REACHED)
    REACHED.clear()
    assert not reached


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has tests that fork this process run first: later it holds threads that a fork breaks."""
    items.sort(key=lambda item: item.path.name != "test_kills.py")


@pytest.fixture(scope="session")
def facts() -> list[Fact]:
    return [fact for fact in world(facts_per_relation=120) if fact.relation in RELATIONS]


@pytest.fixture(scope="session")
def tokenizer(facts: list[Fact]) -> Any:
    return build_tokenizer(facts, 600)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random Llama with its tokenizer, saved as a checkpoint."""
    path = tmp_path_factory.mktemp("base")
    make_model("llama", len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, facts: list[Fact], base: Path) -> Bundle:
    sizes = BundleConfig(known=24, unknown=24, heldout=16, validation=4, replay=4)
    return build_bundle(
        make_labels(facts, base), sizes, tmp_path_factory.mktemp("bundles") / "small"
    )


@pytest.fixture(scope="session")
def protocol() -> Protocol:
    """almanac-v1 cut short, in fp32."""
    return load_protocol("almanac-v1").model_copy(
        update={
            "name": "test",
            "epochs": 40,
            "batch_size": 8,
            "evaluate_every": 30,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "checkpoint_dtype": "float32",
        }
    )


@pytest.fixture(scope="session")
def sft(bundle: Bundle, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("runs") / "sft"
    finetune(Run(bundle, protocol, "sft", MethodSettings(), seed=0), output, progress=False)
    return output


@pytest.fixture(scope="session")
def results(bundle: Bundle, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lm-eval says of that run's checkpoint."""
    output = tmp_path_factory.mktemp("results")
    return run_lm_eval(bundle, "hf", f"pretrained={sft},dtype=float32", output, batch_size="16")
