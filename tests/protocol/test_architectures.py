"""Models other than the embedded base's, through the whole of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import altered, curve, make_run, same, train, weights

from factual_forgetting import checkpoint
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines import prefix
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import first_line
from factual_forgetting.protocol.groups import freeze, freeze_beside_text, select
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.settings import Freeze
from small import OTHERS, make_model

TREELESS = {"lfm2", "mpt"}


def saved(architecture: str, tokenizer: Any, path: Path) -> Path:
    model = make_model(architecture, len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that it says more than one thing
    model.generation_config.repetition_penalty = 3.0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("architecture", sorted(OTHERS))
@pytest.mark.parametrize("method", ["sft", "self_distillation"])
def test_a_run_of_another_architecture_ends(
    bundle: Bundle,
    protocol: Protocol,
    tokenizer: Any,
    architecture: str,
    method: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = saved(architecture, tokenizer, tmp_path / "base")
    prefix._tell.cache_clear()
    short = altered(protocol, epochs=1, evaluate_every=3, max_new_tokens=2, learning_rate=1e-3)
    run = make_run(bundle, short, method, foreign_base=checkpoint.identity(str(base)))
    trained = train(run, tmp_path / "run", pretrained=str(base))
    assert [line["step"] for line in curve(tmp_path / "run")] == [0, 3, 6]
    told = capsys.readouterr().err.count("engine: transformers' generate")
    assert told == (architecture in TREELESS)  # once, not at each point
    kept = same(trained, weights(base))
    assert kept == {name for name in trained if "vision_tower" in name or "multi_modal" in name}


@pytest.mark.parametrize("architecture", sorted(TREELESS))
def test_a_model_that_trees_cannot_run_gives_the_answers_of_greedy_decoding(
    facts: list[Fact], tokenizer: Any, architecture: str, tmp_path: Path
) -> None:
    """By hand: the whole text anew for every token, whatever generation_config.json says."""
    path = saved(architecture, tokenizer, tmp_path / "base")
    model, _ = load_causal_lm(path, "float32", "cpu")
    stops = prefix.stop_ids(tokenizer)
    expected = []
    for fact in facts[:24]:
        ids = tokenizer(question_prompt(fact.question))["input_ids"]
        grown: list[int] = []
        while len(grown) < 8 and not stops & set(grown):
            with torch.inference_mode():
                grown.append(int(model(torch.tensor([ids + grown])).logits[0, -1].argmax()))
        expected.append(first_line(tokenizer.decode(grown, skip_special_tokens=True)))
    assert prefix.answer_zero_shot(model, tokenizer, facts[:24], 8) == expected
    assert len(set(expected)) > 12
    assert model.generation_config.repetition_penalty == 3.0


def test_the_vocabulary_is_searched_for_newlines_once(tokenizer: Any) -> None:
    prefix._newlines.cache_clear()
    assert prefix.stop_ids(tokenizer) == prefix.stop_ids(tokenizer)
    assert prefix._newlines.cache_info().misses == 1


@pytest.mark.parametrize(
    ("architecture", "group", "ends"),
    [
        ("gpt_neox", "attention", ["attention.query_key_value.weight", "attention.dense.weight"]),
        ("gpt_neox", "gate_up", ["mlp.dense_h_to_4h.weight"]),
        ("gpt_neox", "down", ["mlp.dense_4h_to_h.weight"]),
        ("gpt_neox", "embeddings", ["gpt_neox.embed_in.weight"]),
        ("gpt_neox", "lm_head", ["lm_head.weight"]),
        ("gpt_neox", "norms", ["layernorm.weight", "final_layer_norm.weight"]),
        ("falcon", "attention", ["self_attention.query_key_value.weight", "dense.weight"]),
        ("falcon", "ffn", ["mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"]),
        ("falcon", "embeddings", ["transformer.word_embeddings.weight"]),
        ("mpt", "attention", ["attn.Wqkv.weight", "attn.out_proj.weight"]),
        ("mpt", "norms", ["norm_1.weight", "norm_2.weight", "norm_f.weight"]),
        ("mpt", "ffn@1", ["1.ffn.up_proj.weight", "1.ffn.down_proj.weight"]),
        ("lfm2", "gate_up", ["feed_forward.w1.weight", "feed_forward.w3.weight"]),
        ("lfm2", "down@0", ["0.feed_forward.w2.weight"]),
    ],
)
def test_groups_of_other_layouts(architecture: str, group: str, ends: list[str]) -> None:
    names = [name for name, _ in make_model(architecture, 300).named_parameters()]
    found = [name for name in select(names, [group]) if name.endswith("weight")]
    assert found
    assert all(name.endswith(tuple(ends)) for name in found)
    assert all(any(name.endswith(end) for name in found) for end in ends)


def test_a_tower_that_reads_images_is_in_no_group() -> None:
    model = make_model("gemma3", 300)
    freeze_beside_text(model)
    freeze(model, Freeze(trainable=("attention@0",)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".language_model.layers.0.self_attn." in name for name in trained)


def test_adapters_in_a_tower_that_reads_images_do_not_train() -> None:
    pytest.importorskip("peft")
    from factual_forgetting.protocol.methods import METHODS
    from factual_forgetting.protocol.settings import Lora

    prepare = METHODS["lora"].prepare
    assert prepare is not None
    model = prepare(make_model("gemma3", 300), Lora())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("language_model" in name and "lora" in name for name in trained)
