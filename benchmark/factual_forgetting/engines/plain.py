"""Greedy generation by transformers, for models that can't be computed over trees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from factual_forgetting.facts.matching import first_line

_BATCH = 64


def generate_plainly(
    model: Any, tokenizer: Any, prompts: Sequence[str], stops: Collection[int], most: int
) -> list[str]:
    """Answers prompts greedily up to a stop token, `most` tokens at most, in their order.

    Prompts of one length are computed together, without pads, which not every model ignores.
    What the checkpoint's generation_config.json asks for has no part in it.
    """
    import torch
    from transformers import GenerationConfig

    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    places: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[len(row)].append(place)
    batches = [p[i : i + _BATCH] for p in places.values() for i in range(0, len(p), _BATCH)]
    ends = sorted(stops)
    settings = GenerationConfig(max_new_tokens=most, eos_token_id=ends, pad_token_id=ends[0])
    found = [""] * len(rows)
    asked, model.generation_config = model.generation_config, settings
    try:
        for batch in batches:
            ids = torch.tensor([rows[place] for place in batch], device=model.device)
            with torch.inference_mode():
                told = model.generate(ids, attention_mask=torch.ones_like(ids))
            texts = tokenizer.batch_decode(told[:, ids.shape[1] :], skip_special_tokens=True)
            for place, text in zip(batch, texts, strict=True):
                found[place] = first_line(text)
    finally:
        model.generation_config = asked
    return found
