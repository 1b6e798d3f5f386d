import pytest

from factual_forgetting.errors import UserError
from factual_forgetting.protocol.groups import freeze, select
from factual_forgetting.protocol.settings import Freeze
from small import make_model

BOTH = ("weight", "bias")
LLAMA = {
    "attention": [f"self_attn.{name}_proj.weight" for name in "qkvo"],
    "gate_up": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "down": ["mlp.down_proj.weight"],
    "norms": ["input_layernorm.weight", "post_attention_layernorm.weight"],
}
GPT2 = {
    "attention": [f"attn.{name}.{part}" for name in ("c_attn", "c_proj") for part in BOTH],
    "gate_up": [f"mlp.c_fc.{part}" for part in BOTH],
    "down": [f"mlp.c_proj.{part}" for part in BOTH],
    "norms": [f"ln_{number}.{part}" for number in (1, 2) for part in BOTH],
}
BIASES = [f"self_attn.{name}_proj.bias" for name in "qkv"]
# By architecture: where its layers are, and the parameters of each by group.
LAYERED = {
    **dict.fromkeys(("llama", "mistral"), ("model.layers", LLAMA)),
    "qwen2": ("model.layers", {**LLAMA, "attention": LLAMA["attention"] + BIASES}),
    "gpt2": ("transformer.h", GPT2),
}
LLAMA_OUTSIDE = {
    "embeddings": {"model.embed_tokens.weight"},
    "norms": {"model.norm.weight"},
    "lm_head": {"lm_head.weight"},
}
GPT2_OUTSIDE = {
    "embeddings": {"transformer.wte.weight", "transformer.wpe.weight"},
    "norms": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
}


def names_in(architecture: str) -> list[str]:
    return [name for name, _ in make_model(architecture, 300).named_parameters()]


@pytest.mark.parametrize("architecture", sorted(LAYERED))
def test_groups_hold_exactly_these_parameters(architecture: str) -> None:
    stem, groups = LAYERED[architecture]
    names = names_in(architecture)
    outside = GPT2_OUTSIDE if architecture == "gpt2" else LLAMA_OUTSIDE
    layered = {**groups, "ffn": groups["gate_up"] + groups["down"]}
    layered["layers"] = [part for parts in groups.values() for part in parts]
    for group in {*layered, *outside}:
        inside = {f"{stem}.{layer}.{part}" for layer in (0, 1) for part in layered.get(group, [])}
        assert set(select(names, [group])) == inside | outside.get(group, set())


@pytest.mark.parametrize("architecture", sorted(LAYERED))
def test_groups_in_some_layers(architecture: str) -> None:
    stem, groups = LAYERED[architecture]
    names = names_in(architecture)
    attention = {f"{stem}.1.{part}" for part in groups["attention"]}
    assert set(select(names, ["attention@1"])) == attention
    assert select(names, ["attention@0-1"]) == select(names, ["attention"])
    outside = {n for n in names if n not in select(names, ["layers"])}
    assert set(select(names, ["embeddings", "lm_head|ln_f|model.norm"])) == outside
    with pytest.raises(UserError, match="layers 0-1"):
        select(names, ["attention@2-7"])


def test_groups_join_and_expressions_work() -> None:
    wanted = Freeze(trainable=("ffn", r"layers\.1\.self_attn"))
    model = freeze(make_model("llama", 300), wanted)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ffn = LLAMA["gate_up"] + LLAMA["down"]
    expected = {f"model.layers.{layer}.{part}" for layer in range(2) for part in ffn}
    assert trained == expected | {f"model.layers.1.{part}" for part in LLAMA["attention"]}


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ("lm_head", "tied to the input embeddings: give embeddings"),
        ("experts", "'experts' matches no parameter"),
        ("(", "not a regular expression"),
    ],
)
def test_a_group_that_selects_nothing_is_told(group: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        select(names_in("gpt2"), [group])
