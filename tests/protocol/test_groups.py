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


_NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
_GPT2_NORMS = [f"ln_{n}.{p}" for n in (1, 2) for p in ("weight", "bias")]
LAYERED = {
    "llama": {
        "gate_up": _LLAMA_FFN[:2],
        "down": _LLAMA_FFN[2:],
        "norms": _NORMS,
        "layers": _LLAMA_ATTENTION + _LLAMA_FFN + _NORMS,
    },
    "gpt2": {
        "gate_up": _GPT2_FFN[:2],
        "down": _GPT2_FFN[2:],
        "norms": _GPT2_NORMS,
        "layers": _GPT2_ATTENTION + _GPT2_FFN + _GPT2_NORMS,
    },
}
LAYERED["mistral"] = LAYERED["llama"]
LAYERED["qwen2"] = {**LAYERED["llama"], "layers": _QWEN_ATTENTION + _LLAMA_FFN + _NORMS}
LLAMA_OUTSIDE = {
    "embeddings": {"model.embed_tokens.weight"},
    "norms": {"model.norm.weight"},
    "lm_head": {"lm_head.weight"},
}
OUTSIDE: dict[str, dict[str, set[str]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2"), LLAMA_OUTSIDE),
    "gpt2": {
        "embeddings": {"transformer.wte.weight", "transformer.wpe.weight"},
        "norms": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
    },
}


@pytest.mark.parametrize("architecture", sorted(EXPECTED))
def test_groups_hold_exactly_these_parameters(architecture: str) -> None:
    stem, attention, ffn = EXPECTED[architecture]
    names = [name for name, _ in make_model(architecture, 300).named_parameters()]
    layered = {"attention": attention, "ffn": ffn, **LAYERED[architecture]}
    for group in {*layered, *OUTSIDE[architecture]}:
        inside = {f"{stem}.{layer}.{p}" for layer in range(2) for p in layered.get(group, [])}
        assert set(select(names, [group])) == inside | OUTSIDE[architecture].get(group, set())


@pytest.mark.parametrize("architecture", sorted(EXPECTED))
def test_groups_in_some_layers(architecture: str) -> None:
    stem, attention, _ = EXPECTED[architecture]
    names = [name for name, _ in make_model(architecture, 300).named_parameters()]
    assert set(select(names, ["attention@1"])) == {f"{stem}.1.{part}" for part in attention}
    assert select(names, ["attention@0-1"]) == select(names, ["attention"])
    outside = {n for n in names if n not in select(names, ["layers"])}
    assert set(select(names, ["embeddings", "lm_head|ln_f|model.norm"])) == outside
    with pytest.raises(UserError, match="layers 0-1"):
        select(names, ["attention@2-7"])


def test_a_tied_output_layer_is_told() -> None:
    names = [name for name, _ in make_model("gpt2", 300).named_parameters()]
    with pytest.raises(UserError, match="tied to the input embeddings: give embeddings"):
        select(names, ["lm_head"])


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
