"""The form of a record, its identity, and its JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, StringConstraints, model_validator

from factual_forgetting import files
from factual_forgetting.config import Config

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# No control characters: a name can't forge a line of a terminal or of a log.
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,300}$")]
Note = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,1000}$")]
Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
Count = Annotated[int, Field(ge=0)]
Scalar = bool | int | FiniteFloat | str | None
Metric = FiniteFloat | dict[str, bool | int | FiniteFloat | None] | None

Level = Literal["self-reported", "rescored", "reproduced"]
LEVELS: tuple[Level, ...] = get_args(Level)
RECORD_FORM: Literal["record-2"] = "record-2"
OUTCOMES_SUFFIX = ".outcomes.jsonl.gz"  # After the id of the record beside it.
# What record-1 called otherwise. Its batch size is scoring's where the checkpoint was scored:
# only the outcomes tell, see `load_record`.
_RENAMED = {
    "cost": {"extra_forwards": "extra_tokens"},
    "environment": {"batch_size": "training_batch_size"},
}
_NEW_NAMES = {
    "cost": {"extra_tokens"},
    "environment": {"training_batch_size", "scoring_batch_size"},
}


class BaseOf(Config):
    """The base model.

    Attributes:
        pretrained: Its name.
        revision: Its revision on the Hub.
        weights_sha256: Hash of its weights; None for a served model.
    """

    pretrained: Name | None
    revision: Name | None = None
    weights_sha256: Hash | None = None


class MethodOf(Config):
    """How a checkpoint was made: the method and its settings."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    settings: dict[str, Scalar | list[Scalar]]


class ProtocolOf(Config):
    """The recipe: its name and the hash of its resolved content."""

    name: Name
    sha256: Hash


class OutcomesOf(Config):
    """The file of per-fact outcomes beside the record.

    Attributes:
        file: Its name.
        sha256: Hash of its uncompressed content.
        rows: Its number of lines, one a fact.
    """

    file: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}\.outcomes\.jsonl\.gz$")]
    sha256: Hash
    rows: Count


class CurvePoint(Config):
    """A point of the curve; its outcomes are in the outcomes file."""

    step: Count
    loss: FiniteFloat | None


class Cost(Config):
    """What a run cost; None where it isn't known.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens that the student read in training.
        extra_tokens: Tokens read by forward passes beyond the student's own, of a teacher say.
        extra_data: Facts or documents seen in training beside D_Known and D_Unk.
        gpu_hours: Hours times GPUs.
    """

    steps: Count | None = None
    tokens: Count | None = None
    extra_tokens: Count | None = None
    extra_data: Count | None = None
    gpu_hours: Annotated[FiniteFloat, Field(ge=0)] | None = None


class EnvironmentOf(Config):
    """What a result was made with; None where nothing says it.

    Attributes:
        device: Processor or GPUs.
        dtype: Number format of the scored weights.
        attention: Implementation of attention.
        training_batch_size: Facts in an optimizer step.
        scoring_batch_size: Batch size of lm-eval, as it was given.
        python: Version of Python.
        platform: Operating system and processor architecture.
        packages: Versions of the packages that matter.
        commit: Commit of this project's checkout; None for an installed release.
        dirty: Whether that checkout had changes.
    """

    device: Name | None = None
    dtype: Name | None = None
    attention: Name | None = None
    training_batch_size: Name | None = None
    scoring_batch_size: Name | None = None
    python: Name | None = None
    platform: Name | None = None
    packages: dict[Name, Name] = Field(default_factory=dict)
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    dirty: bool | None = None


class TrainingDataOf(Config):
    """What the checkpoint was trained on, as its maker declares it.

    Attributes:
        description: In words.
        heldout: Whether facts of D_Held were among it.
    """

    description: Note | None = None
    heldout: Literal["excluded", "included", "unknown"] = "unknown"


class Record(Config):
    """One published result.

    Attributes:
        format: Version of this form; files of `record-1`, and those without one, are read too.
        id: Hash of what identifies the result; see `record_id`.
        base: The base model.
        bundle_sha256: Identity of the bundle.
        method: How the checkpoint was made.
        protocol: The recipe; None where the checkpoint was made otherwise.
        seed: Seed of the run; None where unknown.
        track: `closed` for a protocol of the package, else `open`.
        trials: Settings that were tried before this one was chosen; None where undeclared.
        level: `self-reported`: arithmetic recomputed, outcomes taken on trust; `rescored`: the
            weights, known by hash, were scored again; `reproduced`: trained again.
        weights_sha256: Hash of the checkpoint's weights; None for a served model.
        repository: Where on the Hub the weights are.
        metrics: Recomputed from the outcomes by every reader, never trusted.
        curve: Evaluated points; empty without a run.
        outcomes: The outcomes file.
        cost: What the run cost.
        environment: What it was made with.
        training_data: What it was trained on.
        note: Words of its maker.
        recorded: When the record was written, UTC.
    """

    format: Literal["record-2"]
    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    base: BaseOf
    bundle_sha256: Hash
    method: MethodOf
    protocol: ProtocolOf | None
    seed: int | None
    track: Literal["closed", "open"]
    trials: Annotated[int, Field(ge=1)] | None = None
    level: Level = "self-reported"
    weights_sha256: Hash | None
    repository: Repository | None = None
    metrics: dict[Name, Metric]
    curve: list[CurvePoint]
    outcomes: OutcomesOf
    cost: Cost = Cost()
    environment: EnvironmentOf
    training_data: TrainingDataOf = TrainingDataOf()
    note: Note | None = None
    recorded: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]

    @model_validator(mode="before")
    @classmethod
    def _read_record_1(cls, values: Any) -> Any:
        """Gives the fields of the form before the names that they have in this one."""
        if not isinstance(values, dict) or not is_record_1(values):
            return values
        renamed = {part: _with_new_names(part, values[part]) for part in _RENAMED if part in values}
        return {**values, **renamed, "format": RECORD_FORM}


def is_record_1(values: Mapping[str, Any]) -> bool:
    """Whether the plain data of a record are of the form before this one."""
    return bool(values.get("format", "record-1") == "record-1")


def _with_new_names(part: str, values: Any) -> Any:
    if not isinstance(values, dict):
        return values  # Which the form refuses.
    if newer := sorted(_NEW_NAMES[part] & values.keys()):
        raise ValueError(f"record-1 has no {part}.{newer[0]}; record the result again")
    return {_RENAMED[part].get(name, name): value for name, value in values.items()}


# Fields that make a result another result. All others describe it, and dates, hosts and notes
# may change without a new identity.
IDENTITY = ("bundle_sha256", "weights_sha256", "method", "protocol", "seed", "outcomes")


def record_id(record: Mapping[str, Any]) -> str:
    """Identifies a result: two results share an id only if they are the same.

    Of a record's plain data, the fields in `IDENTITY` count; of its `outcomes` the hash.
    """
    # "record-1" is the identity's version, which outlives the form's.
    parts = [record[key] for key in IDENTITY[:-1]]
    return files.sha256_json(["record-1", *parts, record["outcomes"]["sha256"]])[:16]


def slug(text: str) -> str:
    """Returns a name that can be nothing but a plain folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text.rstrip("/").split("/")[-1]).strip("-") or "unnamed"


def place(record: Mapping[str, Any]) -> str:
    """Returns where a record belongs under a directory of records, as plain data says it."""
    base = slug(record["base"]["pretrained"] or "base")
    method = slug(record["method"]["name"])
    return f"{base}/{record['bundle_sha256'][:12]}/{method}/{record['id']}.json"
