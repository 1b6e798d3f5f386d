"""What users are told where nothing else of the lab's tests tells it."""

from pathlib import Path

import pytest
import torch

from factual_forgetting import files
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.pretrain import PretrainConfig, pretrain_base

FACTS = [Fact.make("born", "Ana", "Where was Ana born?", ("Rome",))]


@pytest.fixture
def config() -> PretrainConfig:
    sizes = dict.fromkeys(
        "exposures_low exposures_high num_hidden_layers num_attention_heads num_key_value_heads "
        "block_size batch_size epochs".split(),
        1,
    )
    sizes["threads"] = torch.get_num_threads()  # which this sets for all tests that follow
    return PretrainConfig(
        **sizes, seed=0, never=0.0, vocab_size=300, hidden_size=2, intermediate_size=2,
        learning_rate=1e-3, warmup_ratio=0.0, weight_decay=0.0, bf16=False,
    )  # fmt: skip


def test_nothing_to_teach(config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Check --facts and --relations"):
        pretrain_base([], config, tmp_path)


def test_a_folder_with_a_checkpoint(config: PretrainConfig, tmp_path: Path) -> None:
    files.write_json(tmp_path / "config.json", {})
    with pytest.raises(UserError, match=r"a checkpoint already\. Choose another --output_path"):
        pretrain_base(FACTS, config, tmp_path)


def test_another_recipe_than_the_one_begun(config: PretrainConfig, tmp_path: Path) -> None:
    files.write_json(tmp_path / "pretrain.partial.json", "another")
    with pytest.raises(UserError, match=r"another recipe\. Choose another --output_path"):
        pretrain_base(FACTS, config, tmp_path)
