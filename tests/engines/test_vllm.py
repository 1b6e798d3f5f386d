"""The vLLM engine: against a stand-in with vLLM's signatures, and for real where it is installed.

The stand-in shows that prompts and settings arrive; only the real tests show equal answers
(scripts/test_vllm_cpu.sh).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_prefix import engines, groups_of, texts, verdicts

from factual_forgetting import checkpoint
from factual_forgetting.engines.engine import Group, Query, Sampling
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.engines.vllm import VLLMEngine
from factual_forgetting.errors import UserError
from factual_forgetting.facts.almanac import world
from tiny import checkpoint_of
from vllm_cpu import CPU, INSTALLED, real


@dataclass
class StandInParams:
    """`vllm.SamplingParams`, as far as it is used."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None


class StandInTokenizer:
    """A token is a byte."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(tokens).decode()


class StandInLLM:
    """`vllm.LLM`, as far as it is used: answers a prompt with its number of tokens."""

    made: StandInLLM

    def __init__(self, model: str, **settings: Any) -> None:
        if model == "bad":
            raise ValueError("no such thing\nand more")
        StandInLLM.made = self
        self.model, self.settings = model, settings
        length = settings["max_model_len"] if settings["max_model_len"] > 0 else 256
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=length))

    def get_tokenizer(self) -> StandInTokenizer:
        return StandInTokenizer()

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: StandInParams,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[Any]:
        self.prompts, self.params, self.lora = prompts, sampling_params, lora_request
        lengths = [len(prompt["prompt_token_ids"]) for prompt in prompts]
        answers = [SimpleNamespace(token_ids=f" {length}\nQ:".encode()) for length in lengths]
        return [SimpleNamespace(outputs=[answer] * sampling_params.n) for answer in answers]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = SimpleNamespace(LLM=StandInLLM, SamplingParams=StandInParams)
    request = SimpleNamespace(LoRARequest=lambda *given: given)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)


GROUPS = [
    Group("Q: a\nA: b\n\n", [Query("Q: c\nA:", ("d",)), Query("Q: ee\nA:", ("f",))]),
    Group("", [Query("Q: c\nA:", ("d",))]),
]


@pytest.mark.usefixtures("stand_in")
def test_prompts_arrive_as_tokens_in_the_order_of_their_prefixes() -> None:
    engine = VLLMEngine({"pretrained": "somewhere", "dtype": "float32"})
    found = engine.answer(GROUPS, 12)
    made = StandInLLM.made
    assert (made.model, made.settings["dtype"]) == ("somewhere", "float32")
    assert made.settings["enable_prefix_caching"] is True
    assert [bytes(p["prompt_token_ids"]).decode() for p in made.prompts] == [
        group.prefix + query.text for group in GROUPS for query in group.queries
    ]
    assert made.params == StandInParams(
        temperature=0.0, stop=["\n"], max_tokens=12, repetition_penalty=1.0, stop_token_ids=[]
    )
    assert made.settings["max_model_len"] == -1
    assert [[answer.text for answer in group] for group in found] == [["18", "19"], ["7"]]


@pytest.mark.usefixtures("stand_in")
def test_samples_are_drawn_with_a_seed() -> None:
    engine = VLLMEngine({"pretrained": "somewhere"})
    found = engine.sample(GROUPS, 12, Sampling(3, 0.5, 40, "seed"))
    assert [[len(answers) for answers in group] for group in found] == [[3, 3], [3]]
    params = StandInLLM.made.params
    assert (params.n, params.temperature, params.top_k) == (3, 0.5, 40)
    assert params.seed is not None


@pytest.mark.usefixtures("stand_in")
def test_an_adapter_is_passed_with_a_name_of_its_own() -> None:
    names = set()
    for path in ("a", "b"):
        engine = VLLMEngine({"pretrained": "somewhere", "lora_local_path": path})
        engine.answer(GROUPS, 12)
        assert StandInLLM.made.settings["enable_lora"] is True
        name, _, told = StandInLLM.made.lora
        assert told == path
        names.add(name)
    assert len(names) == 2


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("config", "expected"),
    [({"r": 16}, None), ({"r": 40}, 64), ({"r": 8, "rank_pattern": {"q_proj": 100}}, 128)],
)
def test_an_adapter_of_a_high_rank_has_room(
    config: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    VLLMEngine({"pretrained": "somewhere", "lora_local_path": str(tmp_path)})
    assert StandInLLM.made.settings.get("max_lora_rank") == expected


@pytest.mark.usefixtures("stand_in")
def test_every_end_of_the_checkpoints_files_stops_an_answer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 7}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    VLLMEngine({"pretrained": str(tmp_path)}).answer(GROUPS, 12)
    assert StandInLLM.made.params.stop_token_ids == [2, 5, 7]


@pytest.mark.usefixtures("stand_in")
def test_a_device_of_several_is_not_taken_silently() -> None:
    with pytest.raises(UserError, match="not cuda:1: give one with CUDA_VISIBLE_DEVICES"):
        open_engine("auto", "vllm", {"pretrained": "almanac"}, "auto", "cuda:1")


@pytest.mark.usefixtures("stand_in")
def test_a_prompt_longer_than_the_context_is_refused() -> None:
    engine = VLLMEngine({"pretrained": "somewhere", "max_model_len": 25})
    with pytest.raises(UserError, match="context holds 25"):
        engine.answer(GROUPS, 12)


@pytest.mark.usefixtures("stand_in")
def test_auto_takes_vllm_for_its_own_model_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_engine("auto", "vllm", {"pretrained": "almanac"}, "auto", None).name == "vllm"
    assert "engine: vllm" in capsys.readouterr().err
    assert StandInLLM.made.model == str(checkpoint.embedded("base"))


@pytest.mark.usefixtures("stand_in")
def test_what_vllm_refuses_is_told_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"vLLM does not open bad \(no such thing\). Check"):
        VLLMEngine({"pretrained": "bad"})


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed here")
def test_without_vllm_the_way_out_is_told() -> None:
    with pytest.raises(UserError, match="vLLM is not installed here"):
        VLLMEngine({"pretrained": "somewhere"})


@pytest.mark.slow
@real
@pytest.mark.parametrize(("shape", "kind"), [("qwen2", "bpe"), ("llama", "unigram")])
def test_vllm_answers_as_the_reference_does(shape: str, kind: str) -> None:
    path = str(checkpoint_of(shape, kind))
    groups = groups_of(4, 60)
    reference, ours = engines(Path(path))
    expected = texts(reference.answer(groups, 16))
    assert texts(ours.answer(groups, 16)) == expected
    assert texts(VLLMEngine({"pretrained": path, **CPU}).answer(groups, 16)) == expected


@pytest.mark.slow
@real
def test_all_engines_answer_the_same_on_the_embedded_base() -> None:
    facts = [fact for fact in world() if fact.relation in ("author", "place_of_birth")]
    groups = groups_of(3, 80, facts)
    reference, ours = engines(checkpoint.embedded("base"))
    expected = reference.answer(groups, 16)
    found = [ours]
    for choice in ("vllm", "lm-eval"):
        arguments = {"pretrained": "almanac", **CPU}
        found.append(open_engine(choice, "vllm", arguments, "auto", "cpu"))
    assert [engine.name for engine in found] == ["prefix", "vllm", "lm-eval:vllm"]
    for engine in found:
        assert texts(engine.answer(groups, 16)) == texts(expected)
    right = verdicts(groups, expected)
    assert 0.2 < sum(right) / len(right) < 0.8


@pytest.mark.slow
@real
def test_vllm_answers_for_an_adapter_as_the_merged_model_does(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = checkpoint_of("llama", "unigram")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    settings = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path / "merged")
    groups = groups_of(1, 20)
    whole = {"pretrained": str(tmp_path / "merged"), "dtype": "float32"}
    merged = LMEvalEngine("hf", whole, "64", "cpu")
    arguments = {"pretrained": str(path), "lora_local_path": str(tmp_path / "adapter"), **CPU}
    found = texts(VLLMEngine(arguments).answer(groups, 16))
    assert found == texts(merged.answer(groups, 16))
