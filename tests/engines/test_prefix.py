from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting.engines import prompts
from factual_forgetting.engines.decoding import stop_ids
from factual_forgetting.engines.engine import Answer, Group, Query, Sampling
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.engines.tree import TreeModel, UnsupportedModelError
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.slick.configurations import draw_configurations
from tiny import KINDS, SHAPES, WORLD, checkpoint_of, config_of


def groups_of(runs: int, questions: int, world: Sequence[Fact] = WORLD) -> list[Group]:
    groups = []
    for relation, configs in draw_configurations(world, runs, 3, seed=0).items():
        facts = [f for f in world if f.relation == relation and f.id not in configs.ids]
        queries = [
            Query(prompts.question_prompt(fact.question), fact.accepted, likely=bool(index % 2))
            for index, fact in enumerate(facts[:questions])
        ]
        groups += [Group(prompts.exemplar_prefix(e), queries) for e in configs.labelling]
        groups.append(Group("", queries))
    return groups


def verdicts(groups: list[Group], answers: list[list[Any]]) -> list[bool]:
    return [
        is_correct(answer.text, query.accepted)
        for group, found in zip(groups, answers, strict=True)
        for query, answer in zip(group.queries, found, strict=True)
    ]


def texts(answers: list[list[Any]]) -> list[str]:
    return [answer.text for group in answers for answer in group]


def prefix_engine(batch_size: int = 32) -> PrefixEngine:
    return PrefixEngine(*load_causal_lm(checkpoint_of(), "float32", "cpu"), batch_size)


def engines(path: Path, dtype: str = "float32") -> tuple[LMEvalEngine, PrefixEngine]:
    reference = LMEvalEngine("hf", {"pretrained": str(path), "dtype": dtype}, "32", "cpu")
    return reference, PrefixEngine(*load_causal_lm(path, dtype, "cpu"), 32)


def assert_same_answers(path: Path, runs: int, questions: int) -> list[Answer]:
    groups = groups_of(runs, questions)
    reference, engine = engines(path)
    expected = reference.answer(groups, 16)
    assert texts(engine.answer(groups, 16)) == texts(expected)
    early = engine.answer(groups, 16, verdict_only=True)
    right = verdicts(groups, expected)
    assert verdicts(groups, early) == right
    assert any(right)
    assert not all(right)
    return [answer for group in early for answer in group]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("qwen2", "bpe"), ("llama", "unigram"), ("gpt2", "bpe"), ("mistral", "bpe")],
)
def test_answers_are_those_of_the_reference(shape: str, kind: str) -> None:
    early = assert_same_answers(checkpoint_of(shape, kind), runs=2, questions=30)
    assert any(answer.truncated for answer in early)
    assert len({answer.text for answer in early}) > 2  # one answer a relation would prove little


@pytest.mark.slow
def test_five_thousand_answers_are_those_of_the_reference() -> None:
    asked = {
        pair: len(assert_same_answers(checkpoint_of(*pair), 4, 80))
        for pair in product(SHAPES, KINDS)
    }
    assert len(asked) == 8
    assert min(asked.values()) >= 640
    assert sum(asked.values()) >= 5000


def test_the_shapes_share_heads_and_slide_within_a_prompt() -> None:
    _, tokenizer = load_causal_lm(checkpoint_of(), "float32", "cpu")
    llama, mistral = (config_of(shape, len(tokenizer)) for shape in ("llama", "mistral"))
    assert llama.num_key_value_heads < llama.num_attention_heads
    assert mistral.sliding_window < len(tokenizer(groups_of(1, 1)[0].prefix)["input_ids"])


def test_a_newline_merged_into_a_token_ends_an_answer_and_keeps_its_full_stop() -> None:
    model, tokenizer = load_causal_lm(checkpoint_of(), "float32", "cpu")
    merged = {t for t in stop_ids(model, tokenizer) if tokenizer.decode([t]).startswith(".\n")}
    assert merged
    world_answer = tokenizer(" Washington D.C.\n\nQ:")["input_ids"]
    assert merged & set(world_answer)


def test_answers_ending_in_a_full_stop_are_found() -> None:
    group = groups_of(2, 80)[0]
    engine = prefix_engine()
    sampling = Sampling(samples=60, temperature=1.2, top_k=40, seed="")
    drawn = engine.sample([group], 16, sampling)[0]
    right = {
        answer.text
        for answers, query in zip(drawn, group.queries, strict=True)
        for answer in answers
        if is_correct(answer.text, query.accepted)
    }
    assert any(text.endswith(".") for text in right)


def test_an_early_stop_and_drafts_save_computation() -> None:
    groups = groups_of(2, 100)
    engine = prefix_engine()
    engine.answer(groups, 16)
    whole = engine.computed
    engine.answer(groups, 16, verdict_only=True)
    assert engine.computed - whole < whole


def test_margin_is_the_smallest_gap_of_the_generated_tokens() -> None:
    import torch

    model, tokenizer = load_causal_lm(checkpoint_of(), "float32", "cpu")
    group = groups_of(1, 5)[0]
    found = PrefixEngine(model, tokenizer).answer([group], 16)[0]
    for query, answer in zip(group.queries, found, strict=True):
        ids = tokenizer(group.prefix + query.text, return_tensors="pt")["input_ids"]
        gaps = []
        for _ in range(16):
            with torch.inference_mode():
                best = model(ids).logits[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids = torch.cat([ids, best.indices[:1].unsqueeze(0)], dim=1)
            if int(best.indices[0]) in stop_ids(model, tokenizer):
                break
        assert answer.margin == pytest.approx(min(gaps), abs=1e-3)


def test_batch_size_and_company_do_not_change_answers() -> None:
    group = groups_of(1, 20)[0]
    one, many = prefix_engine(1), prefix_engine(64)
    assert texts(one.answer([group], 16)) == texts(many.answer([group], 16))
    alone = [one.answer([Group(group.prefix, [query])], 16)[0][0].text for query in group.queries]
    assert alone == texts(one.answer([group], 16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_equal_logits_the_first_token_is_taken_as_greedy_decoding_does(dtype: str) -> None:
    def tie(head: Any, given: Any, logits: Any) -> Any:
        best = logits.argmax(dim=-1, keepdim=True)
        return logits.scatter(-1, (best + 1) % logits.shape[-1], logits.gather(-1, best))

    groups = groups_of(2, 5)
    reference, engine = engines(checkpoint_of(), dtype)
    for model in (reference._lm.model, engine._tree._model):
        model.get_output_embeddings().register_forward_hook(tie)
    found = engine.answer(groups, 16)
    if dtype == "float32":  # in bf16 the best may differ between processors
        assert texts(found) == texts(reference.answer(groups, 16))
    assert all(answer.margin == 0 for group in found for answer in group)


def test_sampled_answers_follow_the_distribution_and_the_seed() -> None:
    group = groups_of(1, 6)[0]
    engine = prefix_engine()
    sampling = Sampling(samples=50, temperature=1.0, top_k=40, seed="a")
    first = engine.sample([group], 16, sampling)[0]
    assert [len(answers) for answers in first] == [50] * 6
    again = engine.sample([Group(group.prefix, group.queries[:2])], 16, sampling)[0]
    assert again == first[:2]
    other = Sampling(samples=50, temperature=1.0, top_k=40, seed="b")
    assert engine.sample([group], 16, other)[0] != first
    cold = Sampling(samples=3, temperature=0.001, top_k=40, seed="a")
    greedy = verdicts([group], engine.answer([group], 16))
    for answers, right, query in zip(
        engine.sample([group], 16, cold)[0], greedy, group.queries, strict=True
    ):
        assert [is_correct(a.text, query.accepted) for a in answers] == [right] * 3


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    long = Group("Q: Where was Ana born?\n" * 100, [Query("A:", ("Rome",))])
    for engine in engines(checkpoint_of()):
        with pytest.raises(UserError, match="context holds 512"):
            engine.answer([long], 16)


def test_a_model_without_plain_attention_is_refused_with_the_reason() -> None:
    from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig

    for config in (
        BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2),
        MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1),
    ):
        with pytest.raises(UnsupportedModelError):
            TreeModel(AutoModelForCausalLM.from_config(config).eval())
