from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_prefix import groups_of, texts, verdicts

from factual_forgetting import files
from factual_forgetting.engines.engine import Group, Query, Sampling
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.errors import UserError
from factual_forgetting.slick.classify import LOG, ask, classify, merge, prepare
from factual_forgetting.slick.labelling import SlickConfig, load_labels
from tiny import WORLD, checkpoint_of


def test_auto_takes_the_prefix_engine_for_checkpoints_and_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = open_engine("auto", "hf", {"pretrained": str(checkpoint_of())}, "auto", "cpu")
    assert isinstance(engine, PrefixEngine)
    assert "engine: prefix (a checkpoint of transformers" in capsys.readouterr().err


def test_auto_falls_back_to_the_reference_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("llama", "unigram"))
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = {"pretrained": str(tmp_path)}
    assert open_engine("auto", "hf", arguments, "8", "cpu").name == "lm-eval:hf"
    assert "the prefix engine can't run this model" in capsys.readouterr().err
    with pytest.raises(UserError, match="can't run this model"):
        open_engine("prefix", "hf", arguments, "8", "cpu")


def test_arguments_that_only_lm_eval_knows_go_to_lm_eval(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = {"pretrained": str(checkpoint_of()), "max_length": 256}
    assert open_engine("auto", "hf", arguments, "8", "cpu").name == "lm-eval:hf"
    assert "knows no max_length" in capsys.readouterr().err


def test_a_repetition_penalty_goes_to_lm_eval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_causal_lm(checkpoint_of(), "float32", "cpu")
    model.generation_config.repetition_penalty = 1.1
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model.generation_config.repetition_penalty = None
    engine = open_engine("auto", "hf", {"pretrained": str(tmp_path)}, "8", "cpu")
    assert engine.name == "lm-eval:hf"
    assert "repetition_penalty 1.1" in capsys.readouterr().err


def out_of_memory_above(limit: int, function: Any, size: Callable[..., int]) -> Any:
    def limited(*args: Any, **kwargs: Any) -> Any:
        if size(*args, **kwargs) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **kwargs)

    return limited


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(1, 20)
    engine = PrefixEngine(*load_causal_lm(checkpoint_of(), "float32", "cpu"), 16)
    expected = texts(engine.answer(groups, 16))
    limited = out_of_memory_above(5, engine._tree.compute, lambda branches, top: len(branches))
    monkeypatch.setattr(engine._tree, "compute", limited)
    assert texts(engine.answer(groups, 16)) == expected
    assert engine.batch_size == 4


def test_a_smaller_batch_is_recorded_for_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PrefixEngine(*load_causal_lm(checkpoint_of(), "float32", "cpu"), 16)
    settings = SlickConfig(runs=2, shard_size=20)
    classify(WORLD, engine, settings, {}, tmp_path / "whole")
    job = prepare(WORLD, engine.name, settings, {}, tmp_path / "cramped")
    ask(job, engine, job.shards[:2])
    limited = out_of_memory_above(5, engine._tree.compute, lambda branches, top: len(branches))
    monkeypatch.setattr(engine._tree, "compute", limited)
    ask(job, engine, job.shards)
    merge(job)
    log = files.read_json(tmp_path / "cramped" / LOG)
    assert [row["batch_size"] for row in log] == [16, 16] + [4] * (len(job.shards) - 2)
    whole, cramped = (load_labels(tmp_path / name).labels for name in ("whole", "cramped"))
    assert [(p.fact.id, p.correct) for p in cramped] == [(p.fact.id, p.correct) for p in whole]


def test_lm_eval_halves_its_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(1, 6)[:1]
    engine = LMEvalEngine("hf", f"pretrained={checkpoint_of()},dtype=float32", "16", "cpu")
    expected = texts(engine.answer(groups, 16))
    limited = out_of_memory_above(5, engine._lm._model_generate, lambda context, **_: len(context))
    monkeypatch.setattr(engine._lm, "_model_generate", limited)
    assert texts(engine.answer(groups, 16)) == expected
    assert engine.batch_size == 4


def test_no_memory_for_one_question_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PrefixEngine(*load_causal_lm(checkpoint_of(), "float32", "cpu"), 16)
    wanted = out_of_memory_above(0, None, lambda branches, top: len(branches[0].wanted))
    original = engine._tree.compute
    monkeypatch.setattr(
        engine._tree,
        "compute",
        lambda branches, top: (wanted if branches[0].wanted else original)(branches, top),
    )
    with pytest.raises(UserError, match="Memory runs out with a single question"):
        engine.answer(groups_of(1, 6), 16)


def test_a_failure_that_is_not_memory_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PrefixEngine(*load_causal_lm(checkpoint_of(), "float32", "cpu"), 16)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(engine._tree, "compute", broken)
    with pytest.raises(RuntimeError, match="broken"):
        engine.answer(groups_of(1, 6), 16)


def test_lm_eval_refuses_a_prompt_longer_than_the_context() -> None:
    engine = LMEvalEngine("hf", f"pretrained={checkpoint_of()}", "8", "cpu")
    with pytest.raises(UserError, match="context holds 512"):
        engine.answer([Group("Q: Where was Ana born?\n" * 100, [Query("A:", ("Rome",))])], 16)


def test_lm_eval_samples_by_seed() -> None:
    engine = LMEvalEngine("hf", f"pretrained={checkpoint_of()},dtype=float32", "16", "cpu")
    groups = groups_of(1, 6)[:2]
    sampling = Sampling(samples=3, temperature=1.0, top_k=40, seed="a")
    first = engine.sample(groups, 16, sampling)
    assert [[len(answers) for answers in group] for group in first] == [[3] * 6] * 2
    assert engine.sample(groups, 16, sampling) == first


def test_bfloat16_flips_no_more_than_another_batch_size_does() -> None:
    groups = groups_of(4, 80)
    arguments = f"pretrained={checkpoint_of()},dtype=bfloat16"
    batches = [
        verdicts(groups, LMEvalEngine("hf", arguments, size, "cpu").answer(groups, 16))
        for size in ("64", "5")
    ]
    model = load_causal_lm(checkpoint_of(), "bfloat16", "cpu")
    ours = verdicts(groups, PrefixEngine(*model).answer(groups, 16, verdict_only=True))

    def flips(one: list[bool], other: list[bool]) -> int:
        return sum(a != b for a, b in zip(one, other, strict=True))

    among = flips(*batches)
    assert 0.1 < sum(ours) / len(ours) < 0.9
    most = max(flips(one, ours) for one in batches)
    # Counts of rare flips scatter like Poisson's: four standard deviations of their difference.
    assert most <= among + 4 * (most + among) ** 0.5
