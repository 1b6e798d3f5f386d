"""A record: one published result, bound to data, weights and settings by hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, SPLITS, UNKNOWN, Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.environment import environment
from factual_forgetting.errors import UserError
from factual_forgetting.protocol.config import is_recipe
from factual_forgetting.protocol.curve import (
    CURVE,
    METRIC_OF_SPLIT,
    NOT_ASKED,
    OUTCOMES,
    share_correct,
)
from factual_forgetting.protocol.train import RUN
from factual_forgetting.scoring.metrics import curve_metrics, final_metrics
from factual_forgetting.scoring.results import read_results

_SCORED = (KNOWN, UNKNOWN, HELDOUT)


class MethodOf(Config):
    """How a checkpoint was made: the method and its settings."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    settings: dict[str, Any]


class ProtocolOf(Config):
    """The recipe: its name and the hash of its content."""

    name: str
    sha256: str


class OutcomesOf(Config):
    """The file of per-fact outcomes beside the record."""

    sha256: str
    rows: int


class Point(Config):
    """A point of the curve; its outcomes are in the outcomes file."""

    step: int
    loss: float | None


class Record(Config):
    """One published result.

    Attributes:
        format: Version of this form.
        id: Hash of what identifies the result; see `record_id`.
        base: The base model, as the bundle's manifest has it.
        bundle_sha256: Identity of the bundle.
        method: How the checkpoint was made.
        protocol: The recipe; None where the checkpoint was made otherwise.
        seed: Seed of the run; None where unknown.
        track: `closed` for a protocol of the package, else `open`.
        level: `self-reported`: arithmetic recomputed, outcomes taken on trust.
        weights_sha256: Hash of the checkpoint's weights; None for a served model.
        metrics: Recomputed from the outcomes, never trusted.
        curve: Evaluated points; empty without a run.
        outcomes: The outcomes file.
        environment: What it was made with.
    """

    format: Literal["record-1"] = "record-1"
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    base: dict[str, Any]
    bundle_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    method: MethodOf
    protocol: ProtocolOf | None
    seed: int | None
    track: Literal["closed", "open"]
    level: Literal["self-reported"] = "self-reported"
    weights_sha256: str | None
    metrics: dict[str, Any]
    curve: list[Point]
    outcomes: OutcomesOf
    environment: dict[str, Any]


Outcome = dict[str, Any]


def record_id(
    bundle_sha256: str,
    weights_sha256: str | None,
    method: Mapping[str, Any],
    protocol: Mapping[str, Any] | None,
    seed: int | None,
    outcomes_sha256: str,
) -> str:
    """Identifies a result, version 1: two results share an id only if they are the same."""
    identity = [bundle_sha256, weights_sha256, method, protocol, seed, outcomes_sha256]
    return files.sha256_json(["record-1", identity])[:16]


def make_record(
    source: Path, bundle: Bundle, root: Path, method: str | None = None, seed: int | None = None
) -> Path:
    """Writes a record and its outcomes from an lm-eval output or a run directory.

    Args:
        source: A run directory, or a results file or directory of lm-eval. Where the scored
            checkpoint is a run, its provenance and curve go into the record.
        bundle: The bundle.
        root: Directory of records.
        method: Declares how a checkpoint was made that is no run.
        seed: Its seed.

    Returns:
        Path of the record.

    Raises:
        UserError: If the source is unfinished or of another bundle, or nothing says how the
            checkpoint was made.
    """
    run_dir, final, made_with = _read_source(source, bundle)
    run = _run_of(run_dir, bundle) if run_dir else None
    if run is None and method is None:
        raise UserError(f"{source} is no run of finetune. Say how it was made with --method NAME.")
    curve, strings = _read_curve(run_dir, bundle) if run and run_dir else ([], {})
    if final is None:
        final = {key: text[-1] == "1" for key, text in strings.items()}
    rows = _outcome_rows(bundle, final, strings)
    identity = {
        "bundle_sha256": bundle.sha256,
        "weights_sha256": run["weights_sha256"] if run else _weights(run_dir),
        "method": run["method"] if run else {"name": method, "settings": {}},
        "protocol": _protocol(run) if run else None,
        "seed": run["seed"] if run else seed,
    }
    return _write(bundle, identity, curve, rows, run, made_with, root)


def _read_source(
    source: Path, bundle: Bundle
) -> tuple[Path | None, dict[str, bool] | None, dict[str, Any]]:
    """Returns the checkpoint's directory, final outcomes if scored, and the environment."""
    if (source / RUN).is_file():
        return source, None, files.read_json(source / RUN)["environment"]
    results = read_results(source, bundle)
    local = Path(results.pretrained) if results.pretrained else None
    there = local if local and local.is_dir() else None
    return there, results.correct, {**environment(), "lm_eval_run": results.environment}


def _run_of(path: Path, bundle: Bundle) -> dict[str, Any] | None:
    if not (path / RUN).is_file():
        return None
    run = dict(files.read_json(path / RUN))
    if run["bundle_sha256"] != bundle.sha256:
        raise UserError(f"{path} was trained on another bundle than {bundle.path}.")
    if checkpoint.weights_sha256(path) != run["weights_sha256"]:
        raise UserError(f"The weights in {path} were changed after training. Train again.")
    return run


def _weights(path: Path | None) -> str | None:
    return checkpoint.weights_sha256(path) if path else None


def _protocol(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": run["protocol"]["name"], "sha256": run["protocol_sha256"]}


def _read_curve(path: Path, bundle: Bundle) -> tuple[list[dict[str, Any]], dict[str, str]]:
    points = [
        {"step": line["step"], "loss": line["loss"]} for line in files.read_jsonl(path / CURVE)
    ]
    strings = {row["id"]: row["correct"] for row in files.read_jsonl(path / OUTCOMES)}
    expected = {item.fact.id for name in _SCORED for item in bundle.splits[name]}
    if set(strings) != expected or any(len(text) != len(points) for text in strings.values()):
        raise UserError(f"{path / OUTCOMES} doesn't fit the bundle or the curve. Train again.")
    return points, strings


def _outcome_rows(
    bundle: Bundle, final: Mapping[str, bool], curve: Mapping[str, str]
) -> list[Outcome]:
    return [
        {
            "id": item.fact.id,
            "split": split,
            "relation": item.fact.relation,
            "final": final[item.fact.id],
            "curve": curve.get(item.fact.id, ""),
        }
        for split in SPLITS
        for item in bundle.splits[split]
        if item.fact.id in final
    ]


def _write(
    bundle: Bundle,
    identity: dict[str, Any],
    curve: list[dict[str, Any]],
    rows: list[Outcome],
    run: Mapping[str, Any] | None,
    made_with: dict[str, Any],
    root: Path,
) -> Path:
    digest = files.sha256_json(rows)
    identifier = record_id(**identity, outcomes_sha256=digest)
    closed = identity["protocol"] is not None and (
        is_recipe(identity["protocol"]["name"], identity["protocol"]["sha256"])
    )
    record = {
        **identity,
        "format": "record-1",
        "id": identifier,
        "base": bundle.manifest["base"],
        "track": "closed" if closed else "open",
        "level": "self-reported",
        "metrics": recompute(bundle, rows, curve),
        "curve": curve,
        "outcomes": {"sha256": digest, "rows": len(rows)},
        "environment": made_with,
    }
    base = bundle.manifest["base"]["pretrained"] or "base"
    folder = root / _slug(base) / bundle.sha256[:12] / _slug(identity["method"]["name"])
    parse(Record, record, "record")
    files.write_jsonl(folder / f"{identifier}.outcomes.jsonl.gz", rows)
    path = folder / f"{identifier}.json"
    files.write_json(path, record)
    return path


def _slug(text: str) -> str:
    """A name that can be nothing but a plain folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text.rstrip("/").split("/")[-1]).strip("-") or "unnamed"


def recompute(bundle: Bundle, rows: list[Outcome], curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Computes all metrics of a record from its outcomes and the bundle."""
    correct = {row["id"]: bool(row["final"]) for row in rows}
    points = curve_points(rows, len(curve))
    return {**final_metrics(bundle, correct), **curve_metrics(points)}


def curve_points(rows: list[Outcome], length: int) -> list[dict[str, float | None]]:
    """Computes task learning, plasticity and stability at each point of the curve."""
    texts = {split: [row["curve"] for row in rows if row["split"] == split] for split in _SCORED}
    return [
        {
            METRIC_OF_SPLIT[split]: share_correct("".join(text[point] for text in texts[split]))
            for split in _SCORED
        }
        for point in range(length)
    ]


def load_record(path: Path) -> tuple[Record, list[Outcome]]:
    """Reads a record and its outcomes, hash and form checked.

    Raises:
        UserError: If either is malformed, or the outcomes aren't those of the record.
    """
    record = parse(Record, files.read_json(path), str(path))
    beside = path.with_name(f"{record.id}.outcomes.jsonl.gz")
    rows = list(files.read_jsonl(beside))
    if len(rows) != record.outcomes.rows or files.sha256_json(rows) != record.outcomes.sha256:
        raise UserError(f"{beside} was changed: its hash isn't the one in {path.name}.")
    allowed = {"0", "1", NOT_ASKED}
    for row in rows:
        if set(row["curve"]) - allowed or len(row["curve"]) != len(record.curve):
            raise UserError(f"{beside}: the curve of {row['id']} is malformed.")
    return record, rows


def find_records(root: Path) -> list[Path]:
    """Returns the records under a directory, in a fixed order.

    Raises:
        UserError: If there is none.
    """
    found = sorted(
        path for path in root.rglob("*.json") if re.fullmatch(r"[0-9a-f]{16}", path.stem)
    )
    if not found:
        raise UserError(f"{root} holds no records. Write one with factual-forgetting record.")
    return found
