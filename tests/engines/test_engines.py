from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_prefix import engines, groups_of, prefix_engine, texts, verdicts

from factual_forgetting import files
from factual_forgetting.engines.engine import Sampling
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.errors import UserError
from factual_forgetting.slick.classify import CLASSIFY_LOG, begin, classify
from factual_forgetting.slick.labelling import SlickConfig, load_labels
from tiny import WORLD, checkpoint_of


def opened(path: Path, **more: Any) -> str:
    return open_engine("auto", "hf", {"pretrained": str(path), **more}, "8", "cpu").name


def test_auto_takes_the_prefix_engine_for_checkpoints_and_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert opened(checkpoint_of()) == "prefix"
    assert "engine: prefix (a checkpoint of transformers" in capsys.readouterr().err


def test_auto_falls_back_to_the_reference_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("llama", "unigram"))
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert opened(tmp_path) == "lm-eval:hf"
    assert "the prefix engine can't run this model" in capsys.readouterr().err
    with pytest.raises(UserError, match="The prefix engine can't run this model"):
        open_engine("prefix", "hf", {"pretrained": str(tmp_path)}, "8", "cpu")


def test_what_only_lm_eval_knows_goes_to_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    assert opened(checkpoint_of(), max_length=256) == "lm-eval:hf"
    assert "knows no max_length" in capsys.readouterr().err


def limit_memory(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, size: Callable[..., int], limit: int
) -> None:
    """Lets a method run out of memory where its arguments are larger than a limit."""
    method = getattr(where, name)

    def limited(*args: Any, **kwargs: Any) -> Any:
        if size(*args, **kwargs) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return method(*args, **kwargs)

    monkeypatch.setattr(where, name, limited)


def limit_batch(monkeypatch: pytest.MonkeyPatch, engine: PrefixEngine) -> None:
    limit_memory(monkeypatch, engine._tree, "compute", lambda branches, top: len(branches), 5)


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(1, 20)
    engine = prefix_engine(16)
    expected = texts(engine.answer(groups, 16))
    limit_batch(monkeypatch, engine)
    assert texts(engine.answer(groups, 16)) == expected
    assert engine.batch_size == 4


def test_lm_eval_halves_its_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(1, 6)[:1]
    named = {"pretrained": str(checkpoint_of()), "dtype": "float32"}
    engine = LMEvalEngine("hf", named, "16", "cpu")
    expected = texts(engine.answer(groups, 16))
    limit_memory(monkeypatch, engine._lm, "_model_generate", lambda context, **_: len(context), 5)
    assert texts(engine.answer(groups, 16)) == expected
    assert engine.batch_size == 4


def test_a_smaller_batch_is_recorded_for_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, settings = prefix_engine(16), SlickConfig(runs=2, shard_size=20)
    base = {"pretrained": None}
    classify(WORLD, engine, settings, base, tmp_path / "whole")
    cramped = begin(WORLD, engine.name, settings, base, tmp_path / "cramped")
    cramped.ask(engine, cramped.shards[:2])
    limit_batch(monkeypatch, engine)
    cramped.ask(engine, cramped.shards)
    cramped.merge()
    log = files.read_json(tmp_path / "cramped" / CLASSIFY_LOG)
    assert [row["batch_size"] for row in log] == [16, 16] + [4] * (len(cramped.shards) - 2)
    found, expected = (
        [(label.fact.id, label.correct) for label in load_labels(tmp_path / name).labels]
        for name in ("cramped", "whole")
    )
    assert found == expected


def test_no_memory_for_one_question_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = prefix_engine(16)
    limit_memory(
        monkeypatch, engine._tree, "compute", lambda branches, top: len(branches[0].wanted), 0
    )
    with pytest.raises(UserError, match="Memory runs out with a single question"):
        engine.answer(groups_of(1, 6), 16)


def test_a_failure_that_is_not_memory_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = prefix_engine(16)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(engine._tree, "compute", broken)
    with pytest.raises(RuntimeError, match="broken"):
        engine.answer(groups_of(1, 6), 16)


def test_lm_eval_samples_by_seed() -> None:
    engine, _ = engines(checkpoint_of())
    groups = groups_of(1, 6)[:2]
    sampling = Sampling(samples=3, temperature=1.0, top_k=40, seed="a")
    first = engine.sample(groups, 16, sampling)
    assert [[len(answers) for answers in group] for group in first] == [[3] * 6] * 2
    assert engine.sample(groups, 16, sampling) == first


def test_bfloat16_flips_no_more_than_another_batch_size_does() -> None:
    groups = groups_of(4, 80)
    arguments = {"pretrained": str(checkpoint_of()), "dtype": "bfloat16"}
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
