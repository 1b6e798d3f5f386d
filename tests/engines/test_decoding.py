"""Whatever a checkpoint's files ask for, decoding is the protocol's, in every engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_prefix import engines, groups_of, texts

from factual_forgetting import checkpoint
from factual_forgetting.engines.decoding import end_tokens
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.opening import open_engine
from tiny import checkpoint_of

# Settings that change no greedy answer of a decoder, or that every task sets itself.
_HARMLESS = {
    "max_length", "max_new_tokens", "early_stopping", "do_sample", "use_cache", "temperature",
    "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "length_penalty", "renormalize_logits", "remove_invalid_values", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "pad_token_id", "bos_token_id", "eos_token_id",
    "decoder_start_token_id", "transformers_version", "low_memory", "disable_compile",
    "use_mtp", "speculation_type", "is_assistant", "target_lookbehind", "prompt_lookup_num_tokens",
}  # fmt: skip
_HARMLESS_KINDS = ("cache_", "max_cache", "max_matching", "assistant", "num_assistant", "compile")
_HARMLESS_KINDS += ("continuous_batching", "prefill", "_")


def asking(path: Path, **settings: Any) -> Path:
    """A copy of a tiny checkpoint whose generation_config.json asks for more."""
    shutil.copytree(checkpoint_of(), path)
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return path


def plain() -> list[str]:
    return texts(engines(checkpoint_of())[0].answer(groups_of(1, 15), 16))


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(4, 300))},
    {"begin_suppress_tokens": list(range(4, 490))},
    {"bad_words_ids": [[token] for token in range(4, 300)]},
    {"sequence_bias": [[[token], -1e9] for token in range(4, 300)]},
    {"num_beams": 3, "length_penalty": -3.0, "early_stopping": True},
    {"max_new_tokens": 2},
    {"do_sample": True, "temperature": 3.0, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_setting_of_a_checkpoint_changes_an_answer(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path, groups = asking(tmp_path / "asking", **settings), groups_of(1, 15)
    for engine in engines(path):
        assert texts(engine.answer(groups, 16)) == plain()


def test_every_end_of_the_files_ends_an_answer(tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(checkpoint_of(), "float32", "cpu")
    expected = plain()
    firsts = tokenizer([f" {text}" for text in expected], add_special_tokens=False)["input_ids"]
    one, other = sorted({ids[0] for ids in firsts})[:2]
    path = asking(tmp_path / "asking", eos_token_id=[2, one])
    config = json.loads((path / "config.json").read_text()) | {"eos_token_id": [other, 2]}
    (path / "config.json").write_text(json.dumps(config))
    told = load_causal_lm(path, "float32", "cpu")
    assert end_tokens(*told) == end_tokens(model, tokenizer) | {one, other} == {2, one, other}
    found = [texts(engine.answer(groups_of(1, 15), 16)) for engine in engines(path)]
    assert found[0] == found[1] != expected


def test_what_is_ignored_is_told_and_named_in_the_identity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = asking(tmp_path / "asking", repetition_penalty=1.1, suppress_tokens=[3], top_p=0.8)
    assert open_engine("auto", "hf", {"pretrained": str(path)}, "8", "cpu").name == "prefix"
    told = "greedy, whatever the checkpoint's files ask for (repetition_penalty 1.1, suppress_tok"
    assert told in capsys.readouterr().err
    ignored = ["repetition_penalty 1.1", "suppress_tokens"]
    assert checkpoint.identity(str(path))["decoding_ignored"] == ignored
    open_engine("auto", "hf", {"pretrained": str(checkpoint_of())}, "8", "cpu")
    assert "decoding" not in capsys.readouterr().err
    assert "decoding_ignored" not in checkpoint.identity("almanac")


def test_every_setting_of_transformers_is_known_to_be_harmless_or_told(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    names = [
        name
        for name in vars(GenerationConfig())
        if name not in _HARMLESS and not name.startswith(_HARMLESS_KINDS)
    ]
    assert len(names) > 10
    path = asking(tmp_path / "asking", **dict.fromkeys(names, 7))
    assert checkpoint.ignored_settings(path) == [f"{name} 7" for name in sorted(names)]
