"""Checkpoint directories: where they are, what shape they have, and which weights they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import InputError, NotFoundError, reason_of

# The keys of config.json in which a fine-tuned checkpoint must agree with its base.
_SHAPE_KEYS = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden_size": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
}

# Model classes of lm-eval that load a checkpoint's files, and their arguments for an adapter.
LOCAL_MODELS = ("hf", "vllm")
_ADAPTERS = ("peft", "lora_local_path")
# Arguments of a model that say how a machine runs or reaches it, and may differ between shards.
_OF_THE_MACHINE = {
    "batch_size", "max_batch_size", "device", "device_map", "parallelize", "enforce_eager",
    "block_size", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens",
    "tensor_parallel_size", "data_parallel_size", "num_concurrent", "max_retries", "timeout",
    "auth_token", "header", "verify_certificate", "ca_cert_path",
}  # fmt: skip

LINEAGE_KEY = "factual_forgetting_base"
ALMANAC = "almanac"
_EMBEDDED = Path(__file__).parent / "embedded"


def embedded(kind: str) -> Path:
    """Returns the directory of what ships with the package: `base` or `bundle`."""
    return _EMBEDDED / f"{ALMANAC}-{kind}"


def locate(pretrained: str, revision: str | None = None) -> Path:
    """Finds a checkpoint: `almanac`, a directory, or a Hub repository (cached or fetched).

    Raises:
        UserError: If there is neither, or it holds no safetensors weights.
    """
    path = embedded("base") if pretrained == ALMANAC else Path(pretrained)
    if not path.is_dir():
        path = _from_hub(pretrained, revision)
    if not (path / "config.json").is_file():
        raise NotFoundError(f"{path} holds no config.json. Give the directory of a checkpoint.")
    if not any(path.glob("*.safetensors")):
        raise NotFoundError(
            f"{path} holds no weights (*.safetensors). Save them with save_pretrained; "
            "pickled weights are not read."
        )
    return path


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise NotFoundError(
            f"{repository} is neither a directory nor a repository in reach ({reason_of(error)}). "
            "Check the path, or download the checkpoint first."
        ) from None


def weights_sha256(path: Path) -> str:
    """Hashes all safetensors files of a checkpoint directory, names included."""
    parts = [f"{file.name}:{_sha256_as_it_is(file)}" for file in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256_as_it_is(file: Path) -> str:
    """Hashes a file once, as long as nothing touches it: all runs of a sweep have one base."""
    found = file.stat()
    return _sha256(
        file.resolve(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


@lru_cache(maxsize=1024)
def _sha256(file: Path, *state: int) -> str:
    return files.sha256_file(file)


def shape(path: Path) -> dict[str, Any]:
    """Returns number of layers, hidden size and attention heads from `config.json`."""
    config = files.read_json(path / "config.json")
    text = config.get("text_config", config)
    return {
        name: next((text[key] for key in keys if key in text), None)
        for name, keys in _SHAPE_KEYS.items()
    }


def differing_shape(path: Path, base: Mapping[str, Any]) -> list[str]:
    """Tells where a checkpoint's shape differs from that of a base, as far as that is known."""
    found, expected = shape(path), base["shape"] or {}
    return [f"{k} {found[k]} instead of {v}" for k, v in expected.items() if found[k] != v]


def identity(
    pretrained: str, revision: str | None = None, adapter: str | None = None
) -> dict[str, Any]:
    """Describes a base model by name, weights, shape and declared lineage.

    Args:
        pretrained: As in `locate`.
        revision: As in `locate`.
        adapter: Directory of a LoRA adapter that is put on it; the hash is of both then.

    Raises:
        UserError: If one isn't found.
    """
    path = locate(pretrained, revision)
    weights = weights_sha256(path)
    if adapter is not None:
        if not any(Path(adapter).glob("*.safetensors")):
            raise NotFoundError(
                f"{adapter} holds no *.safetensors. Give the directory of an adapter."
            )
        weights = files.sha256_json([weights, weights_sha256(Path(adapter))])
    return {
        "pretrained": pretrained,
        "revision": revision,
        "weights_sha256": weights,
        "shape": shape(path),
        "lineage": lineage(path),
        **({"adapter": adapter} if adapter is not None else {}),
    }


def describe_base(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Describes a base by its model class and arguments; weights behind a server aren't hashed.

    Args:
        model: lm-eval's name of the model class.
        arguments: Its arguments.

    Returns:
        What `identity` returns, and as `model_args` the arguments that may change answers.

    Raises:
        UserError: If the arguments name no checkpoint, or one that isn't found.
    """
    if model not in LOCAL_MODELS:
        unknown = dict.fromkeys(("revision", "weights_sha256", "shape", "lineage"))
        name = arguments.get("pretrained") or arguments.get("model")
        told = without_machine(arguments)
        return {"pretrained": name, **unknown, "model": model, "model_args": told}
    if "pretrained" not in arguments:
        raise InputError(f"--model {model} needs pretrained=... in --model_args.")
    adapter = next((arguments[key] for key in _ADAPTERS if key in arguments), None)
    base = identity(arguments["pretrained"], arguments.get("revision"), adapter)
    rest = other_arguments(arguments)
    return {**base, "model_args": rest} if rest else base


def other_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's arguments but those that name its weights or say how a machine runs it."""
    told = {"pretrained", "revision", *_ADAPTERS}
    return {k: v for k, v in without_machine(arguments).items() if k not in told}


def without_machine(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's arguments but those that say how a machine runs it."""
    return {key: value for key, value in arguments.items() if key not in _OF_THE_MACHINE}


def lineage(path: Path) -> str | None:
    """Returns the line of descent that `config.json` declares.

    transformers keeps unknown keys of a configuration when it saves a model, so the mark of
    a base survives fine-tuning with any trainer built on it.
    """
    found = files.read_json(path / "config.json").get(LINEAGE_KEY)
    return found if isinstance(found, str) else None


def require_descent(path: Path, base: dict[str, Any]) -> None:
    """Refuses a checkpoint that can't descend from a base.

    Args:
        path: Checkpoint directory.
        base: The base, as `describe_base` does; behind a server its shape isn't known.

    Raises:
        UserError: If the shape differs, or the base is marked and the checkpoint isn't.
    """
    told = differing_shape(path, base)
    if base.get("lineage") and lineage(path) != base["lineage"]:
        told.append(f"config.json doesn't declare the base's {LINEAGE_KEY}")
    if told:
        raise InputError(
            f"{path} does not descend from the base of this bundle: {', '.join(told)}. "
            "Give the bundle of its own base (--bundle, or ff_bundle in --metadata). If it does "
            "descend from this one, declare it (--descends, or ff_descends)."
        )
