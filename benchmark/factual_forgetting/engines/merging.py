"""Adapters merged into the weights that they belong on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.config import Told, parse
from factual_forgetting.engines.loading import load_adapter, load_model, load_tokenizer, way_out
from factual_forgetting.errors import NotFoundError, UserError, reason_of

_CONFIG, _WEIGHTS = "adapter_config.json", checkpoint.ADAPTER_WEIGHTS
_MADE_OF = "merge.json"


class _Adapter(Told):
    """What is read of an adapter's configuration: what it belongs on."""

    base_model_name_or_path: str
    revision: str | None = None


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
    arguments = adapter_apart(arguments)
    if "peft" not in arguments:
        return None
    adapter = require_adapter(Path(str(arguments["peft"])))
    base = checkpoint.locate(arguments["pretrained"], arguments.get("revision"))
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
        whole = with_adapter(load_model(base, dtype="auto"), adapter)
        tokenizer = load_tokenizer(tokenizer_owner(base, adapter))
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


def adapter_apart(arguments: dict[str, Any]) -> dict[str, Any]:
    """Tells the base and the adapter apart, where `pretrained` is an adapter that names its base.

    Other arguments of a model come back as they are.
    """
    adapter = Path(str(arguments.get("pretrained")))
    if "peft" in arguments or not (adapter / _CONFIG).is_file():
        return arguments
    named = parse(_Adapter, files.read_object(adapter / _CONFIG, ours=False), str(adapter))
    rest = {key: value for key, value in arguments.items() if key != "revision"}
    base = {"pretrained": named.base_model_name_or_path, "peft": str(adapter)}
    revision = {"revision": named.revision} if named.revision else {}
    return {**rest, **base, **revision}


def require_adapter(adapter: Path) -> Path:
    """Returns the directory of an adapter; a UserError if it holds none in safetensors."""
    if not (adapter / _CONFIG).is_file():
        raise NotFoundError(f"{adapter} holds no {_CONFIG}. Give the directory of an adapter.")
    if not (adapter / _WEIGHTS).is_file():
        raise NotFoundError(
            f"{adapter} holds no {_WEIGHTS}. Save the adapter with save_pretrained."
        )
    checkpoint.require_whole(adapter)
    return adapter


def with_adapter(model: Any, adapter: Path) -> Any:
    """Merges an adapter into a model: sums in fp32, the result in the model's dtype."""
    dtype = model.dtype
    return load_adapter(model.float(), adapter).merge_and_unload().to(dtype)


def tokenizer_owner(base: Path, adapter: Path | None) -> Path:
    """Returns the directory whose tokenizer is read: an adapter's where it has one."""
    own = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    return adapter if adapter is not None and own else base
