"""Engines answer questions greedily: lm-eval's model classes, and our own with a shared prefix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import first_line


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer.

    Attributes:
        text: The generated text up to the first newline, stripped.
        margin: Smallest gap between the two highest logits over the generated tokens; None
            where the engine doesn't see logits.
    """

    text: str
    margin: float | None


class Engine(Protocol):
    """Answers questions that share the head of their prompt."""

    name: str

    def answer(
        self, prefix: str, questions: Sequence[str], drafts: Sequence[str], max_new_tokens: int
    ) -> list[Answer]:
        """Generates greedily until a newline or the end of the sequence.

        Args:
            prefix: Text that all prompts begin with; may be empty.
            questions: The rest of each prompt.
            drafts: A guess of each answer; it may save time, and never changes an answer.
            max_new_tokens: Most tokens to generate.
        """
        ...


class LMEvalEngine:
    """Any model class of lm-eval, with its own tokenisation, stops and batching."""

    def __init__(self, model: str, model_args: str, batch_size: str, device: str | None) -> None:
        """Loads the model.

        Args:
            model: lm-eval's name of the class, for example `hf` or `vllm`.
            model_args: Its arguments, `key=value` separated by commas.
            batch_size: A number or `auto`.
            device: For example `cuda:0`; None leaves the choice to lm-eval.
        """
        from lm_eval.api.registry import get_model

        self.name = f"lm-eval:{model}"
        self._lm = get_model(model).create_from_arg_string(
            model_args, {"batch_size": batch_size, "device": device or default_device()}
        )

    def answer(
        self, prefix: str, questions: Sequence[str], drafts: Sequence[str], max_new_tokens: int
    ) -> list[Answer]:
        """See `Engine.answer`."""
        from lm_eval.api.instance import Instance

        settings = {"until": ["\n"], "max_gen_toks": max_new_tokens, "do_sample": False}
        requests = [
            Instance("generate_until", {}, (prefix + question, dict(settings)), index)
            for index, question in enumerate(questions)
        ]
        texts = self._lm.generate_until(requests, disable_tqdm=True)
        return [Answer(first_line(text), None) for text in texts]


class PrefixEngine:
    """A causal model of transformers whose prompts share one computed prefix.

    The prompts are tokenised whole; what all of them begin with is computed once, and its keys
    and values are shared. The draft is appended to the prompt: where the model's own choice
    agrees with it, the answer is finished in one forward pass; from the first disagreement on
    it is decoded token by token. In exact arithmetic the answers are those of plain greedy
    decoding (by induction over positions); in bf16 they differ as they do between batch sizes.
    """

    name = "prefix"

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 128) -> None:
        """Wraps a loaded model in eval mode.

        Args:
            model: A causal language model of transformers.
            tokenizer: Its tokenizer.
            batch_size: Questions in one forward pass.
        """
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._stops = stop_ids(tokenizer)

    def answer(
        self, prefix: str, questions: Sequence[str], drafts: Sequence[str], max_new_tokens: int
    ) -> list[Answer]:
        """See `Engine.answer`."""
        if not questions:
            return []
        prompts = [prefix + question for question in questions]
        ids: list[list[int]] = self._tokenizer(prompts)["input_ids"]
        drafted = self._tokenizer([f"{p} {d}" for p, d in zip(prompts, drafts, strict=True)])[
            "input_ids"
        ]
        # Joint tokenisation may move the boundary; such a draft is not a continuation: none.
        guesses = [
            whole[len(part) : len(part) + max_new_tokens - 1] if whole[: len(part)] == part else []
            for part, whole in zip(ids, drafted, strict=True)
        ]
        shared = _common_prefix(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]) + len(guesses[i]))
        answers: list[Answer | None] = [None] * len(ids)
        decoder = _GreedyDecoder(self._model, ids[0][:shared], self._stops, max_new_tokens)
        for start in range(0, len(order), self._batch_size):
            chunk = order[start : start + self._batch_size]
            tails = [ids[i][shared:] for i in chunk]
            for i, (tokens, margin) in zip(
                chunk, decoder.decode(tails, [guesses[i] for i in chunk]), strict=True
            ):
                text = self._tokenizer.decode(tokens, skip_special_tokens=True)
                answers[i] = Answer(first_line(text), margin)
        return [answer for answer in answers if answer is not None]


class _GreedyDecoder:
    """Greedy decoding of many tails after one shared prefix, with drafts checked first."""

    def __init__(
        self, model: Any, prefix: list[int], stops: frozenset[int], max_new_tokens: int
    ) -> None:
        self._model, self._prefix, self._stops = model, prefix, stops
        self._max_new_tokens = max_new_tokens
        self._shared = self._compute_prefix()

    def decode(
        self, tails: list[list[int]], drafts: list[list[int]]
    ) -> Iterator[tuple[list[int], float]]:
        """Yields the generated tokens (the stop token among them) and the smallest margin."""
        import torch

        with torch.inference_mode():
            choices, gaps, cache, mask = self._forward(tails, drafts)
            tokens, margins, unfinished = self._accept(choices, gaps, tails, drafts, mask)
            self._continue(tokens, margins, unfinished, tails, cache, mask)
        yield from zip(tokens, margins, strict=True)

    def _compute_prefix(self) -> list[tuple[Any, Any]]:
        import torch
        from transformers import DynamicCache

        if not self._prefix:
            return []
        cache = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            ids = torch.tensor([self._prefix], device=self._model.device)
            self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _forward(self, tails: list[list[int]], drafts: list[list[int]]) -> tuple[Any, ...]:
        """One pass over tails (padded left) and drafts (padded right), aligned between them."""
        import torch
        from transformers import DynamicCache

        rows, shared = len(tails), len(self._prefix)
        width, reach = max(map(len, tails)), max(map(len, drafts), default=0)
        ids = torch.zeros((rows, width + reach), dtype=torch.long)
        mask = torch.zeros((rows, shared + width + reach), dtype=torch.long)
        mask[:, :shared] = 1
        positions = torch.zeros_like(ids)
        for row, (tail, draft) in enumerate(zip(tails, drafts, strict=True)):
            start, end = width - len(tail), width + len(draft)
            ids[row, start:end] = torch.tensor(tail + draft)
            mask[row, shared + start : shared + end] = 1
            positions[row, start:] = torch.arange(shared, shared + width + reach - start)
        expanded = [
            (k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self._shared
        ]
        cache = DynamicCache(expanded or None, config=self._model.config)
        choices, gaps = self._step(ids, mask, positions, cache, keep=reach + 1)
        return choices, gaps, cache, mask

    def _step(self, ids: Any, mask: Any, positions: Any, cache: Any, keep: int) -> tuple[Any, Any]:
        """Returns the best token and its margin at the last `keep` positions, on the CPU."""
        device = self._model.device
        logits = self._model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        top = logits.float().topk(2, dim=-1)
        return top.indices[..., 0].cpu(), (top.values[..., 0] - top.values[..., 1]).cpu()

    def _accept(
        self, choices: Any, gaps: Any, tails: list[list[int]], drafts: list[list[int]], mask: Any
    ) -> tuple[list[list[int]], list[float], list[int]]:
        """Takes the model's choices as far as the draft agrees, and masks the rejected rest."""
        tokens: list[list[int]] = []
        margins: list[float] = []
        unfinished: list[int] = []
        reach = choices.shape[1] - 1
        for row, draft in enumerate(drafts):
            picked = choices[row].tolist()
            agreed = next(
                (i for i, token in enumerate(draft) if token != picked[i] or token in self._stops),
                len(draft),
            )
            tokens.append(picked[: agreed + 1])
            margins.append(float(gaps[row, : agreed + 1].min()))
            mask[row, mask.shape[1] - reach + agreed :] = 0
            if picked[agreed] not in self._stops and len(tokens[row]) < self._max_new_tokens:
                unfinished.append(row)
        return tokens, margins, unfinished

    def _continue(
        self,
        tokens: list[list[int]],
        margins: list[float],
        alive: list[int],
        tails: list[list[int]],
        cache: Any,
        mask: Any,
    ) -> None:
        """Decodes the unfinished rows token by token, in place."""
        import torch

        if not alive:
            return
        cache.batch_select_indices(torch.tensor(alive, device=self._model.device))
        mask = mask[alive]
        while alive:
            ids = torch.tensor([[tokens[row][-1]] for row in alive])
            places = [len(self._prefix) + len(tails[r]) + len(tokens[r]) - 1 for r in alive]
            mask = torch.cat([mask, torch.ones((len(alive), 1), dtype=torch.long)], dim=1)
            positions = torch.tensor(places).unsqueeze(1)
            choices, gaps = self._step(ids, mask, positions, cache, keep=1)
            for index, row in enumerate(alive):
                tokens[row].append(int(choices[index, 0]))
                margins[row] = min(margins[row], float(gaps[index, 0]))
            kept = [i for i, row in enumerate(alive) if not self._finished(tokens[row])]
            if kept and len(kept) < len(alive):
                cache.batch_select_indices(torch.tensor(kept, device=self._model.device))
                mask = mask[kept]
            alive = [alive[i] for i in kept]

    def _finished(self, tokens: list[int]) -> bool:
        return tokens[-1] in self._stops or len(tokens) >= self._max_new_tokens


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Returns every token that ends an answer: those with a newline in their text, and EOS.

    A newline is often merged into a token (full stop and newline): no one token is the stop.
    """
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    newlines = {token for token, text in enumerate(texts) if "\n" in text}
    return frozenset(newlines | {tokenizer.eos_token_id})


def _common_prefix(ids: list[list[int]]) -> int:
    """Length of the longest common head that leaves every row at least one token."""
    first, last = min(ids), max(ids)
    limit = min(map(len, ids)) - 1
    for index in range(limit):
        if first[index] != last[index]:
            return index
    return limit


def load_causal_lm(
    path: Path, dtype: str = "auto", device: str | None = None, attention: str | None = None
) -> tuple[Any, Any]:
    """Loads a checkpoint's model in eval mode and its tokenizer.

    Args:
        path: Checkpoint directory.
        dtype: A torch dtype's name, or `auto` for the checkpoint's own.
        device: For example `cuda:0`; None takes the GPU where there is one.
        attention: transformers' name of an attention implementation; None for its default.

    Raises:
        UserError: If transformers can't load it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, attn_implementation=attention
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not load ({reason}). Check the checkpoint.") from None
    return model.to(device or default_device()).eval(), tokenizer


def default_device() -> str:
    """Returns the GPU where there is one; lm-eval's own default fails where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def quiet() -> None:
    """Silences the progress bars that libraries draw while loading small things."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
