"""Tiny random models of many architectures, each a checkpoint with a tokenizer."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tiny import checkpoint_of

_MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_GEMMA3 = {**_TEXT, "sliding_window": 24, "layer_types": _MIXED, "query_pre_attn_scalar": 8}
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_GPT_NEOX = {key: _TEXT[key] for key in _TEXT if key not in ("num_key_value_heads", "head_dim")}
_SIZES: dict[str, dict[str, Any]] = {
    "llama": _TEXT,
    "qwen2": _TEXT,
    "qwen3": _TEXT,
    "gemma3_text": _GEMMA3,
    "gemma3": {"mm_tokens_per_image": 4, "vision_config": {"model_type": "siglip_vision_model"}},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt_neox": _GPT_NEOX,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 512},
    "lfm2": {**_TEXT, "layer_types": ["conv", "full_attention", "conv"]},
}
ARCHITECTURES = tuple(_SIZES)
# No tree of texts can be computed with these: ALiBi reads columns as positions, a convolution
# reads neighbours.
WITHOUT_TREES = ("mpt", "lfm2")


def random_config(architecture: str, vocabulary: int) -> Any:
    from transformers import AutoConfig

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Wide enough that answers differ from each other.
    text = {"vocab_size": vocabulary, "initializer_range": 0.3, **ids}
    sizes = dict(_SIZES[architecture])
    if architecture == "gemma3":
        sizes["vision_config"] = {**_VISION, **sizes["vision_config"]}
        sizes["text_config"] = {"model_type": "gemma3_text", **_GEMMA3, **text}
        return AutoConfig.for_model(architecture, **sizes, **ids)
    return AutoConfig.for_model(architecture, **sizes, **text)


@cache
def random_checkpoint(architecture: str) -> Path:
    """Makes and keeps a checkpoint in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of("llama", "unigram", steps=0))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(random_config(architecture, len(tokenizer)))
    path = Path(tempfile.mkdtemp(prefix=f"{architecture}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
