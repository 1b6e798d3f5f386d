"""The protocol's decoding: greedy, over plain logits, until a newline or an end of the sequence.

What else a checkpoint's generation_config.json asks for would change labels and scores of weights
that nobody touched: it is ignored everywhere, and told.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint
from factual_forgetting.engines.models import text_config
from factual_forgetting.engines.serving import require_answers
from factual_forgetting.terminal import note

_KEPT = ("bos_token_id", "pad_token_id", "decoder_start_token_id")


def tell_ignored(path: Path) -> list[str]:
    """Tells on stderr what a checkpoint's files ask for in vain, and returns it."""
    if ignored := checkpoint.ignored_settings(path):
        told = "decoding: greedy, whatever the checkpoint's files ask for"
        note(f"{told} ({', '.join(ignored)})")
    return ignored


def follow_protocol(lm: Any) -> None:
    """Makes a model of lm-eval decode as the protocol does, if it generates with transformers.

    lm-eval passes its stops and `do_sample`, and `generate` takes the rest from the checkpoint.
    Answers that aren't to what was asked are refused.
    """
    require_answers(lm)
    model: Any = getattr(lm, "model", None)
    if not hasattr(model, "generation_config"):
        return
    from transformers import GenerationConfig

    kept = {name: getattr(model.generation_config, name, None) for name in _KEPT}
    ends = sorted(end_tokens(model, lm.tokenizer)) or None
    model.generation_config = GenerationConfig(**kept, eos_token_id=ends)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that end a sequence: EOS of the tokenizer and of the model's files.

    Chat models name several in generation_config.json, and base models may none but in config.json.
    """
    asked = (tokenizer, model.config, text_config(model), model.generation_config)
    found: set[int] = set()
    for source in asked:
        ends = getattr(source, "eos_token_id", None)
        found |= {ends} if isinstance(ends, int) else set(ends or ())
    return frozenset(found)


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns every token that ends an answer: those with a newline in their text, and ends."""
    return _newlines(tokenizer, len(tokenizer)) | end_tokens(model, tokenizer)


@lru_cache(maxsize=4)
def _newlines(tokenizer: Any, size: int) -> frozenset[int]:
    """Tokens with a newline: it is often merged (full stop and newline), so no one is the stop.

    A large vocabulary takes seconds to decode, and a curve asks at every point.
    """
    texts = tokenizer.batch_decode([[token] for token in range(size)])
    return frozenset(token for token, text in enumerate(texts) if "\n" in text)
