"""Prefix engine, lm-eval's hf class and plain greedy generation give the same answers in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_prefix import groups_of, texts

from architectures import ARCHITECTURES, WITHOUT_TREES, random_checkpoint
from factual_forgetting import checkpoint
from factual_forgetting.engines.decoding import stop_ids
from factual_forgetting.engines.engine import Group
from factual_forgetting.engines.models import context_length, load_causal_lm
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.engines.tree import TreeModel, UnsupportedModelError
from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import first_line


def greedy_texts(path: Path, groups: list[Group]) -> list[str]:
    """Answers of `generate`, prompt by prompt."""
    import torch

    model, tokenizer = load_causal_lm(path, "float32", "cpu")
    stops, found = sorted(stop_ids(model, tokenizer)), []
    for prompt in (group.prefix + query.text for group in groups for query in group.queries):
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            out = model.generate(**given, do_sample=False, max_new_tokens=16, eos_token_id=stops)
        new = out[0, given["input_ids"].shape[1] :]
        found.append(first_line(tokenizer.decode(new, skip_special_tokens=True)))
    return found


def answers(path: Path, choice: str, groups: list[Group]) -> list[str]:
    arguments: dict[str, Any] = {"pretrained": str(path), "dtype": "float32"}
    engine = open_engine(choice, "hf", arguments, "8", "cpu")
    assert engine.name == {"prefix": "prefix", "lm-eval": "lm-eval:hf"}[choice]
    return texts(engine.answer(groups, 16))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_greedy_generation(architecture: str) -> None:
    path, groups = random_checkpoint(architecture), groups_of(1, 6)
    expected = greedy_texts(path, groups)
    assert len(set(expected)) > 6
    assert answers(path, "lm-eval", groups) == expected
    if architecture not in WITHOUT_TREES:
        assert answers(path, "prefix", groups) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", WITHOUT_TREES)
def test_what_can_not_be_computed_over_trees_is_refused_in_every_dtype(
    architecture: str, dtype: str
) -> None:
    arguments = {"pretrained": str(random_checkpoint(architecture)), "dtype": dtype}
    assert open_engine("auto", "hf", arguments, "8", "cpu").name == "lm-eval:hf"
    with pytest.raises(UserError, match="The prefix engine can't run this model"):
        open_engine("prefix", "hf", arguments, "8", "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_finds_a_small_error_in_every_dtype_and_leaves_the_weights(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_causal_lm(random_checkpoint("llama"), dtype, "cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    TreeModel(model)
    logits = TreeModel._logits
    monkeypatch.setattr(
        TreeModel, "_logits", lambda *given: logits(*given) + 0.01 * logits(*given).roll(1, -1)
    )
    with pytest.raises(UnsupportedModelError, match="other logits over a tree"):
        TreeModel(model)
    after = model.state_dict()
    assert all(after[name].dtype == weight.dtype for name, weight in before.items())
    assert all(after[name].equal(weight) for name, weight in before.items())


@pytest.mark.parametrize("architecture", ["gemma3", "gemma3_text", "gpt2", "gpt_neox"])
def test_sizes_are_found_within_a_multimodal_configuration_too(architecture: str) -> None:
    path = random_checkpoint(architecture)
    assert context_length(load_causal_lm(path, "float32", "cpu")[0]) == 512
    assert checkpoint.shape(path) == {"layers": 3, "hidden_size": 32, "heads": 4}
