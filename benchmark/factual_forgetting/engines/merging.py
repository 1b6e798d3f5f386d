"""Adapters merged into the weights that they belong on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.engines.loading import load_adapter, load_model, load_tokenizer
from factual_forgetting.engines.models import way_out
from factual_forgetting.errors import NotFoundError, UserError, reason_of

_CONFIG, _WEIGHTS = "adapter_config.json", checkpoint.ADAPTER_WEIGHTS
_MADE_OF, _TOKENIZER = "merge.json", "tokenizer_config.json"


def merge_adapter(arguments: dict[str, Any], folder: Path) -> Path | None:
    """Merges the adapter that model arguments name, into a directory; None if they name none.

    The sums are done in fp32 and saved in the base's dtype. The merge bears the adapter's name,
    beside those of its siblings, so that the adapters of one run stay checkpoints of one run. One
    that is there already is used again if it was made of the same parts.

    Args:
        arguments: `pretrained=BASE,peft=ADAPTER`, or `pretrained=ADAPTER`, which names its base.
        folder: Where merged checkpoints are kept.

    Raises:
        UserError: If peft is missing, the adapter holds no safetensors, its base isn't found,
            or one doesn't load whole.
    """
    adapter = Path(str(arguments.get("peft", arguments["pretrained"])))
    if not (adapter / _CONFIG).is_file():
        if "peft" in arguments:
            raise NotFoundError(f"{adapter} holds no {_CONFIG}. Give the directory of an adapter.")
        return None
    if not (adapter / _WEIGHTS).is_file():
        raise NotFoundError(
            f"{adapter} holds no {_WEIGHTS}. Save the adapter with save_pretrained."
        )
    checkpoint.require_whole(adapter)
    if "peft" in arguments:
        base = checkpoint.locate(arguments["pretrained"], arguments.get("revision"))
    else:
        named = files.read_json(adapter / _CONFIG, ours=False)
        base = checkpoint.locate(str(named.get("base_model_name_or_path")), named.get("revision"))
    parts = {
        "base": checkpoint.weights_sha256(base),
        "adapter": files.sha256_file(adapter / _WEIGHTS),
        "config": files.sha256_file(adapter / _CONFIG),
    }
    family = files.sha256_json([parts["base"], str(adapter.resolve().parent)])[:12]
    merged = folder / family / adapter.resolve().name
    made_of = merged / _MADE_OF
    # One that is merged beside this one takes what this one makes.
    with files.locked(merged.with_name(f".{merged.name}.lock")):
        if not made_of.is_file() or files.read_json(made_of) != parts:
            _merge(base, adapter, merged, parts)
    return merged


def _merge(base: Path, adapter: Path, merged: Path, parts: dict[str, str]) -> None:
    try:
        model = load_model(base, dtype="auto")
        dtype = model.dtype
        whole = load_adapter(model.float(), adapter).merge_and_unload().to(dtype)
        tokenizer = load_tokenizer(adapter if (adapter / _TOKENIZER).is_file() else base)
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{adapter} does not load on {base} ({reason_of(error)}). {way_out(error)}"
        ) from error
    with files.atomic_directory(merged) as beside:
        whole.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        files.write_json(beside / _MADE_OF, parts)
