"""The engine for any model class of lm-eval, with its own tokenisation, stops and batching."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from factual_forgetting.engines.decoding import follow_protocol
from factual_forgetting.engines.engine import Answer, Engine, Group, Sampling, seed_number
from factual_forgetting.engines.loading import strictly, way_out
from factual_forgetting.engines.models import found_device, hasten_bf16
from factual_forgetting.errors import UserError, reason_of
from factual_forgetting.facts.matching import first_line

LM_EVAL = "lm-eval"
_BATCH = 64


class LMEvalEngine(Engine):
    """Any model class of lm-eval."""

    def __init__(
        self, model: str, arguments: dict[str, Any], batch_size: str, device: str | None
    ) -> None:
        """Loads the model, or raises a UserError if lm-eval can't.

        Args:
            model: lm-eval's name of the class, for example `hf` or `vllm`.
            arguments: Its arguments.
            batch_size: A number or `auto`.
            device: For example `cuda:0`; None takes the GPU where there is one.
        """
        from lm_eval.api.registry import get_model

        hasten_bf16()
        self.name = f"{LM_EVAL}:{model}"
        settings = {"batch_size": batch_size, "device": found_device(device)}
        try:
            with strictly():
                self._lm = get_model(model).create_from_arg_obj(arguments, settings)
        except UserError:
            raise
        except Exception as error:  # dozens of libraries stand behind these classes
            raise UserError(
                f"lm-eval's model class {model} does not open ({reason_of(error)}). "
                f"Check --model and --model_args. {way_out(error)}"
            ) from error
        follow_protocol(self._lm)

    @property
    def batch_size(self) -> int:
        """Questions in one batch, where it is a number; halved when memory runs out."""
        size = getattr(self._lm, "batch_size_per_gpu", None)
        return size if isinstance(size, int) else _BATCH

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self._lm.batch_size_per_gpu = size

    def lengths(self, texts: Sequence[str]) -> list[int] | None:
        """Returns the number of tokens of texts; None behind a server that keeps its tokenizer."""
        tokenise = getattr(self._lm, "tok_encode", None)
        return [len(tokenise(text)) for text in texts] if tokenise else None

    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        """Can't stop early; draws depend on the batch as well."""
        import torch

        if sampling is None:
            passes = [self._ask(groups, most, do_sample=False, temperature=0.0)]
        else:
            settings = {"temperature": sampling.temperature, "top_k": sampling.top_k}
            passes = []
            for number in range(sampling.samples):
                torch.manual_seed(seed_number(f"{sampling.seed}-{number}"))
                passes.append(self._ask(groups, most, do_sample=True, **settings))
        return [
            [list(answers) for answers in zip(*group, strict=True)]
            for group in zip(*passes, strict=True)
        ]

    def _ask(
        self, groups: Sequence[Group], max_new_tokens: int, **settings: Any
    ) -> list[list[Answer]]:
        from lm_eval.api.instance import Instance

        prompts = [group.prefix + query.text for group in groups for query in group.queries]
        self._check_room(prompts, max_new_tokens)
        settings["max_gen_toks"] = max_new_tokens
        requests = [
            Instance("generate_until", {}, (prompt, {"until": ["\n"], **settings}), index)
            for index, prompt in enumerate(prompts)
        ]
        texts: list[str] | None = None
        while texts is None:
            with self._halving(self.batch_size):
                texts = self._lm.generate_until(requests, disable_tqdm=True)
        answers = (Answer(first_line(text)) for text in texts)
        return [list(islice(answers, len(group.queries))) for group in groups]

    def _check_room(self, prompts: Sequence[str], max_new_tokens: int) -> None:
        """lm-eval would cut the head of a prompt that is too long, and say it in a log."""
        context = getattr(self._lm, "max_length", None)
        if context is None or not hasattr(self._lm, "tok_encode"):
            return
        for prompt in prompts:
            # No token is shorter than a byte: most prompts need not be counted.
            if len(prompt.encode()) + max_new_tokens >= context:
                self._require_room(len(self._lm.tok_encode(prompt)) + max_new_tokens, context)
