"""Who is compared: a base and checkpoints, as they are given, and what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.engines.merging import adapter_apart, require_adapter, tokenizer_owner
from factual_forgetting.errors import InputError
from factual_forgetting.modelargs import parse_model_args, parse_pairs
from factual_forgetting.scoring.reading import differing_frames, require_uncut
from factual_forgetting.scoring.render import short_names
from factual_forgetting.scoring.task import tokenizer_sha256

# What a checkpoint's arguments begin with to be those of the base, and more.
_BASE = "base"
# vLLM's name of an adapter.
_VLLM, _LORA = "vllm", "lora_local_path"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that is asked.

    Attributes:
        name: What reports call it, another than any other's.
        model: lm-eval's model class.
        arguments: The arguments of that class.
        identity: What decides its answers, whatever its files are called; behind a server its
            name and arguments.
        path: Its files on this machine; None behind a server.
        reads: Directory of its tokenizer; None behind a server.
    """

    name: str
    model: str
    arguments: dict[str, Any]
    identity: dict[str, Any]
    path: Path | None
    reads: Path | None


def read_contestants(
    base: str, checkpoints: Sequence[str], model: str, common: str
) -> list[Contestant]:
    """Finds the base and the checkpoints; the base comes first.

    Args:
        base: A directory, a name on the Hub, or lm-eval's `key=value,key=value`.
        checkpoints: The same; `base,peft=DIR` is the base with an adapter on it.
        model: lm-eval's model class.
        common: Arguments of all, where they have none of their own.

    Raises:
        UserError: If one isn't found or isn't whole.
    """
    if not checkpoints:
        raise InputError("Nothing to compare with the base. Give one checkpoint or more.")
    shared = parse_pairs(common)
    root = {**shared, **parse_model_args(base)}
    given = [root, *(_arguments(text, root, shared) for text in checkpoints)]
    names = short_names([text.removeprefix("pretrained=") for text in (base, *checkpoints)])
    return [_contestant(*pair, model) for pair in zip(names, given, strict=True)]


def _arguments(text: str, base: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    head, comma, rest = text.partition(",")
    if head == _BASE and comma:
        return {**base, **parse_pairs(rest)}
    return {**shared, **parse_model_args(text)}


def _contestant(name: str, arguments: dict[str, Any], model: str) -> Contestant:
    require_uncut(arguments)
    if model not in checkpoint.LOCAL_MODELS:
        told = checkpoint.describe_base(model, arguments)
        return Contestant(name, model, arguments, told, None, None)
    arguments = adapter_apart(arguments)
    told = checkpoint.describe_base(model, arguments)
    adapter = arguments.get("peft", arguments.get(_LORA))
    on = require_adapter(Path(str(adapter))) if adapter is not None else None
    if model == _VLLM and "peft" in arguments:
        arguments = {k: v for k, v in arguments.items() if k != "peft"} | {_LORA: adapter}
    code = bool(arguments.get("trust_remote_code"))
    path = checkpoint.locate(arguments["pretrained"], arguments.get("revision"), code=code)
    reads = Path(str(arguments["tokenizer"])) if "tokenizer" in arguments else None
    reads = reads or tokenizer_owner(path, on)
    identity = {
        "model": model,
        "weights_sha256": told["weights_sha256"],
        "tokenizer_sha256": tokenizer_sha256(reads),
        "model_args": told.get("model_args", {}),
        **({"adapter_sha256": files.sha256_file(on / "adapter_config.json")} if on else {}),
    }
    return Contestant(name, model, arguments, identity, path, reads)


def reading_notes(base: Contestant, others: Iterable[Contestant]) -> list[str]:
    """Tells which checkpoints are the base itself, or read something else than it does."""
    notes = []
    for other in others:
        if other.identity == base.identity:
            notes.append(f"{other.name} is the base itself: the same weights, read the same way.")
        elif (weights := "weights_sha256") in base.identity and (
            other.identity.get(weights) == base.identity[weights] is not None
        ):
            notes.append(f"{other.name} has the base's weights, read in another way.")
        known = [one.identity.get("tokenizer_sha256") for one in (base, other)]
        if None not in known and known[0] != known[1]:
            notes.append(f"{other.name} has another tokenizer than the base.")
        if base.reads and other.reads and (found := differing_frames(other.reads, base.reads)):
            notes.append(
                f"{other.name} puts the special tokens {found[0]} around a text, the base "
                f"{found[1]}."
            )
    return notes
