"""The engine for vLLM: prompts as tokens, sorted by prefix, so that its prefix cache is hit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.engines.engine import Answer, Engine, Group, Sampling, seed_number
from factual_forgetting.errors import PackageError, UserError, reason_of
from factual_forgetting.facts.fact import stable_hash
from factual_forgetting.facts.matching import first_line

# vLLM finds the longest context that its memory holds: a model's own may not fit.
_FITTING = -1
# Names that lm-eval's own vllm class gives to arguments of this engine rather than of vLLM.
_LORA, _BATCH = "lora_local_path", "batch_size"
_RANKS = (32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for, above its default


def _lora_rank(adapter: str | None) -> dict[str, int]:
    """Returns vLLM's setting for an adapter of a higher rank than its default of 16."""
    config = Path(adapter or "") / "adapter_config.json"
    if adapter is None or not config.is_file():
        return {}
    told = files.read_json(config, ours=False)
    rank = max([told.get("r", 0), *(told.get("rank_pattern") or {}).values()])
    return {"max_lora_rank": next((r for r in _RANKS if r >= rank), rank)} if rank > 16 else {}


class VLLMEngine(Engine):
    """Answers with vLLM; automatic prefix caching keeps what prompts share.

    A LoRA adapter is passed as `lora_local_path=DIR` in the model's arguments.
    """

    name = "vllm"

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Starts vLLM, or raises a UserError if it is not installed or can't run the model.

        Args:
            arguments: Those of `vllm.LLM`, with `pretrained` for its `model`.
        """
        try:
            from vllm import LLM
        except ImportError as error:
            raise PackageError(
                f"vLLM is not installed here ({error}). Install factual-forgetting[vllm] in an "
                "environment of its own, or use --model hf."
            ) from None
        rest = {k: v for k, v in arguments.items() if k not in {"pretrained", _LORA, _BATCH}}
        self._lora: Any = None
        if (adapter := arguments.get(_LORA)) is not None:
            from vllm.lora.request import LoRARequest

            # The cache knows an adapter by its name: one name for two would mix their answers.
            self._lora = LoRARequest(stable_hash("adapter", adapter)[:12], 1, adapter)
        try:
            fixed = {"enable_prefix_caching": True, "enable_lora": self._lora is not None}
            asked = {"max_model_len": _FITTING, **_lora_rank(adapter), **rest}
            self._llm = LLM(model=arguments["pretrained"], **fixed, **asked)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"vLLM does not open {arguments['pretrained']} ({reason_of(error)}). "
                "Check --model_args, or use --model hf."
            ) from error
        self._tokenizer = self._llm.get_tokenizer()
        self._ends = checkpoint.end_tokens_told(Path(arguments["pretrained"]))
        self._context = self._llm.llm_engine.model_config.max_model_len

    def lengths(self, texts: Sequence[str]) -> list[int] | None:
        """Returns the number of tokens of texts."""
        return [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]

    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        """Can't stop early; draws depend on vLLM's version and device as well."""
        from vllm import SamplingParams

        # Explicit values: those of the checkpoint's generation_config don't apply then.
        settings = {"max_tokens": most, "stop": ["\n"], "repetition_penalty": 1.0}
        settings["stop_token_ids"] = self._ends
        settings["temperature"] = sampling.temperature if sampling else 0.0
        if sampling:
            seed = seed_number(sampling.seed)
            settings |= {"top_k": sampling.top_k, "n": sampling.samples, "seed": seed}
        texts = [group.prefix + query.text for group in groups for query in group.queries]
        prompts = [{"prompt_token_ids": ids} for ids in self._tokenizer(texts)["input_ids"]]
        longest = max(len(prompt["prompt_token_ids"]) for prompt in prompts)
        self._require_room(longest + most, self._context)
        outputs = self._llm.generate(
            prompts, SamplingParams(**settings), use_tqdm=False, lora_request=self._lora
        )
        answers = ([self._answer(one.token_ids) for one in each.outputs] for each in outputs)
        return [list(islice(answers, len(group.queries))) for group in groups]

    def _answer(self, tokens: Sequence[int]) -> Answer:
        """Decodes as other engines do: vLLM's own text lacks a last, incomplete letter."""
        return Answer(first_line(self._tokenizer.decode(tokens, skip_special_tokens=True)))
