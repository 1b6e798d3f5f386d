import pytest

from factual_forgetting.errors import UserError
from factual_forgetting.protocol.groups import select, train_only
from small import make_model

_LLAMA_ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
_LLAMA_FFN = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
_QWEN_ATTENTION = [
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
]
_GPT2_ATTENTION = [f"attn.{n}.{p}" for n in ("c_attn", "c_proj") for p in ("weight", "bias")]
_GPT2_FFN = [f"mlp.{n}.{p}" for n in ("c_fc", "c_proj") for p in ("weight", "bias")]
EXPECTED = {
    "llama": ("model.layers", _LLAMA_ATTENTION, _LLAMA_FFN),
    "mistral": ("model.layers", _LLAMA_ATTENTION, _LLAMA_FFN),
    "qwen2": ("model.layers", _QWEN_ATTENTION, _LLAMA_FFN),
    "gpt2": ("transformer.h", _GPT2_ATTENTION, _GPT2_FFN),
}


@pytest.mark.parametrize("architecture", sorted(EXPECTED))
def test_groups_hold_exactly_these_parameters(architecture: str) -> None:
    stem, attention, ffn = EXPECTED[architecture]
    names = [name for name, _ in make_model(architecture, 300).named_parameters()]
    for group, parts in (("attention", attention), ("ffn", ffn)):
        expected = {f"{stem}.{layer}.{part}" for layer in range(2) for part in parts}
        assert set(select(names, [group])) == expected


def test_groups_join_and_expressions_work() -> None:
    model = make_model("llama", 300)
    train_only(model, ["ffn", r"layers\.1\.self_attn"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {f"model.layers.{layer}.{part}" for layer in range(2) for part in _LLAMA_FFN}
    assert trained == expected | {f"model.layers.1.{part}" for part in _LLAMA_ATTENTION}


def test_a_group_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="'experts' matches no parameter"):
        select(["model.layers.0.mlp.up_proj.weight"], ["experts"])


def test_a_broken_expression_is_an_error() -> None:
    with pytest.raises(UserError, match="not a regular expression"):
        select(["a"], ["("])
