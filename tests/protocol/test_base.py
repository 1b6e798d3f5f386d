"""Bundles whose base is behind a server, or is a base with an adapter on it."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from runs import altered, make_run, train, weights

from factual_forgetting import checkpoint
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines.merging import merge_adapter
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.protocol.recipe import Execution, Protocol
from factual_forgetting.protocol.train import rehearse
from factual_forgetting.scoring.report import make_report
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import run_lm_eval
from small import adapter_on, make_labels


@pytest.fixture
def still(protocol: Protocol) -> Protocol:
    """Six steps that move nothing."""
    return altered(protocol, name="still", epochs=1, learning_rate=1e-12, max_new_tokens=1)


def built(facts: list[Fact], output: Path, model: str, arguments: dict[str, str]) -> Bundle:
    labels = make_labels(facts, None)
    described = checkpoint.describe_base(model, arguments)
    labels = dataclasses.replace(labels, manifest={**labels.manifest, "base": described})
    sizes = BundleConfig(known=24, unknown=24, heldout=16, validation=4, replay=4)
    return build_bundle(labels, sizes, output)


def test_a_base_behind_a_server(
    facts: list[Fact], base: Path, still: Protocol, tmp_path: Path
) -> None:
    given = {"model": "m", "base_url": "http://here/v1", "auth_token": "secret"}
    bundle = built(facts, tmp_path / "b", "local-completions", given)
    assert "secret" not in str(bundle.manifest)
    with pytest.raises(UserError, match=r"through --model local-completions.*insist with"):
        train(make_run(bundle, still, "sft"), tmp_path / "r")
    foreign = checkpoint.identity(str(base))
    run = dataclasses.replace(make_run(bundle, still, "sft"), foreign_base=foreign)
    train(run, tmp_path / "r")
    written = run_lm_eval(bundle, "hf", str(tmp_path / "r"), tmp_path / "s", batch_size="16")
    told = make_report(bundle, read_results(written, bundle)).summary["notes"]
    assert any("doesn't know its base's weights" in note for note in told)


def test_a_base_with_an_adapter(
    facts: list[Fact], base: Path, still: Protocol, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter_on(base, adapter)
    arguments = {"pretrained": str(base), "peft": str(adapter)}
    bundle = built(facts, tmp_path / "b", "hf", arguments)
    merged = merge_adapter(arguments, tmp_path / "merged")
    assert merged
    run = make_run(bundle, still, "self_distillation")
    trained = train(run, tmp_path / "r")
    for name, expected in weights(merged).items():
        assert torch.allclose(trained[name], expected, atol=1e-6)
    assert not (tmp_path / "r" / "merged").exists()
    assert rehearse(run, Execution(), 3) > 0
    moved = shutil.move(adapter, tmp_path / "moved")
    with pytest.raises(UserError, match="holds no"):
        train(run, tmp_path / "again")
    train(run, tmp_path / "again", adapter=str(moved))
    # Another adapter on the right base is another base.
    other = adapter_on(base, tmp_path / "other")
    torch.nn.init.ones_(next(w for name, w in other.named_parameters() if "lora_B" in name))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="other are not those of the base"):
        train(run, tmp_path / "x", adapter=str(tmp_path / "other"))
