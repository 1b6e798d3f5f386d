"""Checkpoint directories: where they are, what shape they have, and which weights they hold."""

from __future__ import annotations

import hashlib
import json
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

# What generation_config.json may ask for that changes greedy answers, and where it changes nothing.
_DECODING: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("min_new_tokens", "penalty_alpha", "diversity_penalty"), 0),
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "stop_strings"), None),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "sequence_bias"), None),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "dola_layers"), None),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config"), None),
    **dict.fromkeys(("token_healing", "max_time"), None),
}

_POINTER = b"version https://git-lfs"
_METADATA, _LARGEST_HEADER = "__metadata__", 100_000_000

LINEAGE_KEY = "factual_forgetting_base"
# Patterns of the names that save_pretrained gives to what it writes.
WRITTEN = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template.jinja",
)  # fmt: skip
ALMANAC = "almanac"
_EMBEDDED = Path(__file__).parent / "embedded"


def embedded(kind: str) -> Path:
    """Returns the directory of what ships with the package: `base` or `bundle`."""
    return _EMBEDDED / f"{ALMANAC}-{kind}"


def locate(pretrained: str, revision: str | None = None, *, code: bool = False) -> Path:
    """Finds a checkpoint: `almanac`, a directory, or a Hub repository (cached or fetched).

    Args:
        pretrained: One of these.
        revision: Of the repository.
        code: Whether its own code is fetched too: it was asked for with `trust_remote_code`.

    Raises:
        UserError: If there is neither, it holds no safetensors weights, or a file isn't whole.
    """
    path = embedded("base") if pretrained == ALMANAC else Path(pretrained)
    if not path.is_dir():
        path = _from_hub(pretrained, revision, code=code)
    if not (path / "config.json").is_file():
        raise NotFoundError(f"{path} holds no config.json. Give the directory of a checkpoint.")
    if not any(path.glob("*.safetensors")):
        raise NotFoundError(
            f"{path} holds no weights (*.safetensors). Save them with save_pretrained; "
            "pickled weights are not read."
        )
    require_whole(path)
    return path


def require_whole(folder: Path) -> None:
    """Refuses a directory in which a file is a pointer of Git LFS, cut, or missing.

    Raises:
        UserError: With the file, and how to get it.
    """
    for file in sorted(each for each in folder.iterdir() if each.is_file()):
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise InputError(
                    f"{file} is a pointer of Git LFS in place of the file. Run git lfs install "
                    f"and git lfs pull in {folder}."
                )
        if file.suffix == ".safetensors" and (told := _size_told(file)) != file.stat().st_size:
            raise InputError(
                f"{file} is cut or damaged: it has {file.stat().st_size:,} bytes, and its header "
                f"tells {told:,}. Get it again (git lfs pull, or the Hub's client)."
            )
    parts = set(_read(folder / "model.safetensors.index.json").get("weight_map", {}).values())
    if missing := sorted(part for part in parts if not (folder / part).is_file()):
        raise NotFoundError(f"{folder} lacks {missing[0]}, which its index names. Get it too.")


def _size_told(file: Path) -> int:
    """Returns the size that the header of a safetensors file tells; if damaged, its own end."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length if length < _LARGEST_HEADER else 0))
            ends = [row["data_offsets"][1] for name, row in header.items() if name != _METADATA]
        except (ValueError, TypeError, LookupError, AttributeError):
            ends = []
    return 8 + length + int(max(ends, default=0))


def _from_hub(repository: str, revision: str | None, *, code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *["*.py"] * code]
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
    config = _read(path / "config.json")
    text = config.get("text_config", config)
    return {
        name: next((text[key] for key in keys if key in text), None)
        for name, keys in _SHAPE_KEYS.items()
    }


def ignored_settings(path: Path) -> list[str]:
    """Tells what a checkpoint's files ask of decoding that the protocol, which is greedy, ignores.

    Settings of earlier versions of transformers stand in config.json.
    """
    names = ("config.json", "generation_config.json")
    asked = {key: value for name in names for key, value in _read(path / name).items()}
    found = {key: asked[key] for key in sorted(_DECODING.keys() & asked.keys())}
    return [
        f"{key} {value}" if isinstance(value, int | float | str) else key
        for key, value in found.items()
        if value is not False and value not in (None, [], {}, _DECODING[key])
    ]


def end_tokens_told(path: Path) -> list[int]:
    """Returns the tokens that end a sequence, as config.json and generation_config.json say."""
    config = _read(path / "config.json")
    told = (config, config.get("text_config") or {}, _read(path / "generation_config.json"))
    ends = [source.get("eos_token_id") for source in told]
    return sorted(
        {token for end in ends for token in ([end] if isinstance(end, int) else end or ())}
    )


def _read(path: Path) -> dict[str, Any]:
    """Reads a file of a model's, which need not be there."""
    return dict(files.read_json(path, ours=False)) if path.exists() else {}


def differing_shape(path: Path, base: Mapping[str, Any]) -> list[str]:
    """Tells where a checkpoint's shape differs from that of a base, as far as that is known."""
    found, expected = shape(path), base["shape"] or {}
    return [f"{k} {found[k]} instead of {v}" for k, v in expected.items() if found[k] != v]


def identity(
    pretrained: str,
    revision: str | None = None,
    adapter: str | None = None,
    *,
    code: bool = False,
) -> dict[str, Any]:
    """Describes a base model by name, weights, shape and declared lineage.

    Args:
        pretrained: As in `locate`.
        revision: As in `locate`.
        adapter: Directory of a LoRA adapter that is put on it; the hash is of both then.
        code: As in `locate`.

    Raises:
        UserError: If one isn't found.
    """
    path = locate(pretrained, revision, code=code)
    weights = weights_sha256(path)
    if adapter is not None:
        if not any(Path(adapter).glob("*.safetensors")):
            raise NotFoundError(
                f"{adapter} holds no *.safetensors. Give the directory of an adapter."
            )
        require_whole(Path(adapter))
        weights = files.sha256_json([weights, weights_sha256(Path(adapter))])
    ignored = ignored_settings(path)
    return {
        "pretrained": pretrained,
        "revision": revision,
        "weights_sha256": weights,
        "shape": shape(path),
        "lineage": lineage(path),
        **({"adapter": adapter} if adapter is not None else {}),
        **({"decoding_ignored": ignored} if ignored else {}),
    }


def describe_base(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Describes a base by its model class and arguments; weights behind a server aren't hashed.

    Args:
        model: lm-eval's name of the model class.
        arguments: Its arguments.

    Returns:
        What `identity` returns, with None for what a server hides, and as `model_args` the
        arguments that may change answers.

    Raises:
        UserError: If the arguments name no checkpoint, or one that isn't found.
    """
    known = model in LOCAL_MODELS
    name = arguments.get("pretrained") or arguments.get("model")
    # Other classes that read a directory are no servers: vision models, accelerators, sglang.
    if not known and ("base_url" in arguments or not Path(str(name)).is_dir()):
        unknown = dict.fromkeys(("revision", "weights_sha256", "shape", "lineage"))
        told = without_machine(arguments)
        return {"pretrained": name, **unknown, "model": model, "model_args": told}
    if "pretrained" not in arguments:
        raise InputError(f"--model {model} needs pretrained=... in --model_args.")
    adapter = next((arguments[key] for key in _ADAPTERS if key in arguments), None)
    code = bool(arguments.get("trust_remote_code"))
    base = identity(arguments["pretrained"], arguments.get("revision"), adapter, code=code)
    base |= {} if known else {"model": model}
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
    found = _read(path / "config.json").get(LINEAGE_KEY)
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
