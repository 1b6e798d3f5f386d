"""The form of a record, its identity, and its JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from factual_forgetting import files
from factual_forgetting.config import Config
from factual_forgetting.protocol.recipe import Protocol

# Neither control characters nor what turns or hides text: a name can't forge a line of a terminal,
# of a log or of a page, nor look like another one.
_PRINTED = (
    r"[^\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# Above every honest number, and whole in a page's floating point.
_MOST = 10**15
_MOST_TEXT, _MOST_ENTRIES, _MOST_POINTS, _DEEPEST = 1000, 256, 10_000, 8

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RecordId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Name = Annotated[str, StringConstraints(pattern=rf"^{_PRINTED}{{1,300}}$")]
Note = Annotated[str, StringConstraints(pattern=rf"^{_PRINTED}{{1,{_MOST_TEXT}}}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
Repository = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$")
]
Url = Annotated[str, StringConstraints(pattern=r"^https://[!-;=?-Z_a-z~%]{1,300}$")]
Submitter = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,37}[a-z0-9])?$")]
Count = Annotated[int, Field(strict=True, ge=0, le=_MOST)]
Whole = Annotated[int, Field(strict=True, ge=-_MOST, le=_MOST)]
Number = Annotated[float, Field(strict=True, ge=-_MOST, le=_MOST, allow_inf_nan=False)]
Truth = Annotated[bool, Field(strict=True)]
Scalar = Truth | Whole | Number | Name | None
Metric = Number | dict[Key, Truth | Whole | Number | None] | None

Level = Literal["self-reported", "rescored", "reproduced"]
LEVELS: tuple[Level, ...] = get_args(Level)
RECORD_FORM: Literal["record-3"] = "record-3"
_FORMS = ("record-1", "record-2")
# What the forms before didn't say: whose a record is, and the one matcher that there was.
UNSTATED, _ITS_MATCHER = "unstated", "exact-2"
OUTCOMES_SUFFIX = ".outcomes.jsonl.gz"  # After the id of the record beside it.
# What record-1 called otherwise. Its batch size is scoring's where the checkpoint was scored:
# only the outcomes tell, see `load_record`.
_RENAMED = {
    "cost": {"extra_forwards": "extra_tokens"},
    "environment": {"batch_size": "training_batch_size"},
}
_LATER = {
    "submitter", "matcher_version", "resolved_protocol", "origin", "style", "trained", "url",
}  # fmt: skip
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
    settings: dict[Key, Scalar | Annotated[list[Scalar], Field(max_length=_MOST_ENTRIES)]] = Field(
        max_length=_MOST_ENTRIES
    )


class ProtocolOf(Config):
    """The recipe: its name and the hash of its resolved content, which the record holds too."""

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
    loss: Number | None


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
    gpu_hours: Annotated[Number, Field(ge=0)] | None = None


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
    packages: dict[Name, Name] = Field(default_factory=dict, max_length=_MOST_ENTRIES)
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    dirty: Truth | None = None


class TrainingDataOf(Config):
    """What the checkpoint was trained on, as its maker declares it.

    Attributes:
        description: In words.
        heldout: Whether facts of D_Held were among it.
    """

    description: Note | None = None
    heldout: Literal["excluded", "included", "unknown"] = "unknown"


class OriginOf(Config):
    """What ties a checkpoint to the base; None where nothing says it.

    Attributes:
        descent: `trained`: finetune made it of the base; `checked`: its shape and marks are the
            base's; `declared`: it is the base's by its maker's word alone.
        tokenizer_sha256: Hash of the tokenizer that it was asked through.
        base_tokenizer_sha256: Hash of the base's; another one gives the same questions as other
            tokens.
    """

    descent: Literal["trained", "checked", "declared"] | None = None
    tokenizer_sha256: Hash | None = None
    base_tokenizer_sha256: Hash | None = None


def _a_date(text: str) -> str:
    datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    return text


class Record(Config):
    """One published result.

    Attributes:
        format: Version of this form; files of `record-1` and `record-2` are read too.
        id: Hash of what identifies the result; see `record_id`.
        base: The base model.
        bundle_sha256: Identity of the bundle.
        method: How the checkpoint was made.
        submitter: Who answers for it, as they are known where the records are; `unstated` in the
            forms before. Records of two submitters are two arms.
        protocol: The recipe; None where the checkpoint was made otherwise.
        resolved_protocol: The content of that recipe, to make the run again.
        seed: Seed of the run; None where unknown.
        track: `closed` for a recipe of the package, with what it pins and no more trials than it
            has; else `open`.
        trials: Settings that were tried before this one was chosen; None where undeclared.
        matcher_version: The version of answer matching that outcomes were judged by.
        style: The lm-eval group that asked: zero-shot as in training, few-shot, or chat.
        trained: Whether the checkpoint ever trained on D_train, as its maker declares where no run
            says it; if not, it has neither T nor P.
        level: `self-reported`: arithmetic recomputed, outcomes taken on trust; `rescored`: the
            weights, known by hash, were scored again; `reproduced`: trained again. The
            maintainers' file says it, no record.
        weights_sha256: Hash of the checkpoint's weights; None for a served model.
        repository: Where on the Hub the weights are.
        url: Where the method is told: a paper, say, or its code.
        metrics: Recomputed from the outcomes by every reader, never trusted.
        curve: Evaluated points; empty without a run.
        outcomes: The outcomes file.
        cost: What the run cost.
        environment: What it was made with.
        origin: What ties it to the base.
        training_data: What it was trained on.
        note: Words of its maker.
        recorded: When the record was written, UTC.
    """

    format: Literal["record-3"]
    id: RecordId
    base: BaseOf
    bundle_sha256: Hash
    submitter: Submitter
    method: MethodOf
    protocol: ProtocolOf | None
    resolved_protocol: Protocol | None
    seed: Whole | None
    track: Literal["closed", "open"]
    trials: Annotated[int, Field(strict=True, ge=1, le=_MOST)] | None = None
    matcher_version: Key
    style: Literal[
        "factual_forgetting", "factual_forgetting_fewshot", "factual_forgetting_chat"
    ] = "factual_forgetting"
    trained: Truth = True
    level: SkipJsonSchema[Level] = Field(default="self-reported", exclude=True)
    weights_sha256: Hash | None
    repository: Repository | None = None
    url: Url | None = None
    metrics: dict[Key, Metric] = Field(max_length=_MOST_ENTRIES)
    curve: list[CurvePoint] = Field(max_length=_MOST_POINTS)
    outcomes: OutcomesOf
    cost: Cost = Cost()
    environment: EnvironmentOf
    origin: OriginOf = OriginOf()
    training_data: TrainingDataOf = TrainingDataOf()
    note: Note | None = None
    recorded: Annotated[
        str,
        StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"),
        AfterValidator(_a_date),
    ]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        """Bounds the whole, and gives the forms before the names and fields of this one."""
        if not isinstance(values, dict):
            return values
        _require_bounded(values, _DEEPEST)
        if form_of(values) in _FORMS:
            return _from_before(values)
        if "level" in values:
            raise ValueError("a record doesn't say its level; the maintainers' file does")
        if values.get("submitter") == UNSTATED:
            raise ValueError(f"{UNSTATED} is nobody's name; give the submitter's")
        return values


def form_of(values: Mapping[str, Any]) -> Any:
    """Returns the form that the plain data of a record say they have; the first said none."""
    return values.get("format", "record-1")


def _from_before(values: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    if form_of(values) == "record-1":
        renamed = {part: _with_new_names(part, values[part]) for part in _RENAMED if part in values}
    if newer := sorted(_LATER & values.keys()):
        raise ValueError(f"{form_of(values)} has no {newer[0]}; record the result again")
    told = {key: value for key, value in values.items() if key != "level"}
    later = {"submitter": UNSTATED, "matcher_version": _ITS_MATCHER, "resolved_protocol": None}
    return {**told, **renamed, **later, "format": RECORD_FORM}


def _require_bounded(value: Any, depth: int) -> None:
    """Refuses what no honest record holds, wherever it stands: it would break every reader."""
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError("it is nested too deeply")
        if len(value) > (_MOST_ENTRIES if isinstance(value, dict) else _MOST_POINTS):
            raise ValueError("it has too many entries")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _require_bounded(part, depth - 1)
    elif isinstance(value, str) and len(value) > _MOST_TEXT:
        raise ValueError(f"it holds a text of more than {_MOST_TEXT} characters")
    elif isinstance(value, int | float) and not abs(value) <= _MOST:
        raise ValueError(f"it holds a number beyond {_MOST:.0e}")


def _with_new_names(part: str, values: Any) -> Any:
    if not isinstance(values, dict):
        return values  # Which the form refuses.
    if newer := sorted(_NEW_NAMES[part] & values.keys()):
        raise ValueError(f"record-1 has no {part}.{newer[0]}; record the result again")
    return {_RENAMED[part].get(name, name): value for name, value in values.items()}


# Fields that make a result another result. All others describe it, and dates, hosts and notes
# may change without a new identity. The forms before had none of the later ones, and the last ones
# count where they aren't what they were for every record then.
_IDENTITY_BEFORE = ("bundle_sha256", "weights_sha256", "method", "protocol", "seed", "outcomes")
_IDENTITY_LATER = ("submitter", "matcher_version")
_USUALLY = {"style": "factual_forgetting", "trained": True}
IDENTITY = (*_IDENTITY_BEFORE, *_IDENTITY_LATER, *_USUALLY)


def record_id(record: Mapping[str, Any]) -> str:
    """Identifies a result: two results share an id only if they are the same.

    Of a record's plain data, the fields in `IDENTITY` count; of its `outcomes` the hash.
    """
    before = record.get("submitter", UNSTATED) == UNSTATED
    told = {**record, "outcomes": record["outcomes"]["sha256"]}
    parts = [told[key] for key in (*_IDENTITY_BEFORE, *(() if before else _IDENTITY_LATER))]
    parts += [{k: told[k]} for k, usual in _USUALLY.items() if told.get(k, usual) != usual]
    return files.sha256_json(["record-1" if before else "record-3", *parts])[:16]


def slug(text: str) -> str:
    """Returns a name that can be nothing but a plain folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text.rstrip("/").split("/")[-1]).strip("-") or "unnamed"


def place(record: Mapping[str, Any]) -> str:
    """Returns where a record belongs under a directory of records, as plain data says it."""
    base = slug(record["base"]["pretrained"] or "base")
    method = slug(record["method"]["name"])
    return f"{base}/{record['bundle_sha256'][:12]}/{method}/{record['id']}.json"
