"""The commands that make a record again, from what it says alone."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

from factual_forgetting import files
from factual_forgetting.board.form import UNSTATED, Record
from factual_forgetting.bundle.manifest import MANIFEST
from factual_forgetting.checkpoint import ALMANAC, embedded
from factual_forgetting.protocol.recipe import load_protocol, protocol_sha256, recipe_names
from factual_forgetting.scoring.styles import TASK

_PROTOCOL, _RUN, _RESULTS = "protocol.yaml", "run", "results"


def remake_commands(record: Record) -> list[str]:
    """Returns commands, safe in a shell, that train a record's run again, score and record it.

    What finetune didn't make is scored again alone. A bundle that isn't the embedded one is
    looked for in `bundle-` and the first digits of its hash.
    """
    bundle = _bundle_name(record)
    given = ["--bundle", bundle, *(["--tasks", record.style] if record.style != TASK else [])]
    submitter = "NAME" if record.submitter == UNSTATED else record.submitter
    publish = ["record", _RESULTS, *given, "--submitter", submitter, "--output_path", "records"]
    if record.protocol is None:
        place = f"pretrained={record.repository}" if record.repository else "CHECKPOINT"
        publish += ["--method", record.method.name, *_settings(record)]
        publish += [] if record.seed is None else ["--seed", str(record.seed)]
        publish += ["--trained" if record.trained else "--no-trained"]
        return [_command(*_score(place, given)), _command(*publish)]
    first, protocol = _protocol_argument(record)
    train = ["finetune", *given[:2], "--protocol", protocol, "--method", record.method.name]
    train += [*_settings(record), "--seed", str(record.seed), "--output_path", _RUN]
    return [*first, *(_command(*words) for words in (train, _score(_RUN, given), publish))]


def _settings(record: Record) -> list[str]:
    settings = record.method.settings
    return ["--method_args", files.dumps(settings)] if settings else []


def _score(checkpoint: str, given: list[str]) -> list[str]:
    return ["score", "--model_args", checkpoint, *given, "--output_path", _RESULTS]


def _command(*words: str) -> str:
    return shlex.join(["factual-forgetting", *words])


def _bundle_name(record: Record) -> str:
    shipped = record.bundle_sha256 == _embedded_sha256()
    return ALMANAC if shipped else f"bundle-{record.bundle_sha256[:12]}"


# A page asks for thousands of records.
@cache
def _embedded_sha256() -> str | None:
    manifest = embedded("bundle") / MANIFEST
    return files.read_json(manifest)["sha256"] if manifest.is_file() else None


@cache
def _recipe_sha256(name: str) -> str | None:
    return protocol_sha256(load_protocol(name)) if name in recipe_names() else None


def _protocol_argument(record: Record) -> tuple[list[str], str]:
    """What writes the protocol to a file, and what finetune calls it; a recipe needs no file."""
    told: Any = record.protocol
    if _recipe_sha256(told.name) == told.sha256:
        return [], told.name
    if record.resolved_protocol is None:  # A form before.
        return [], told.name
    content = files.dumps(record.resolved_protocol.model_dump(mode="json"))
    return [f"printf '%s' {shlex.quote(content)} > {_PROTOCOL}"], _PROTOCOL
