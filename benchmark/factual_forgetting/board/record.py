"""Records on disk: written from results or runs, read back with every bound checked."""

from __future__ import annotations

import gzip
import hashlib
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from tqdm import tqdm

from factual_forgetting import checkpoint, files
from factual_forgetting.board.form import (
    EnvironmentOf,
    Level,
    Record,
    TrainingDataOf,
    place,
    record_id,
)
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, SPLITS, UNKNOWN, Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.environment import environment
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import grid
from factual_forgetting.protocol.curve import CURVE, METRIC_OF_SPLIT, OUTCOMES, share_correct
from factual_forgetting.protocol.recipe import find_recipe, load_protocol
from factual_forgetting.protocol.run import LOG, RUN
from factual_forgetting.protocol.settings import SETTINGS, resolve
from factual_forgetting.scoring.metrics import curve_metrics, final_metrics
from factual_forgetting.scoring.results import Results, read_results
from factual_forgetting.slick.labelling import NOT_ASKED

SCORED = (KNOWN, UNKNOWN, HELDOUT)
# Strangers' files are read whole only up to here; the largest honest ones stay far below.
MOST_RECORD = 2 * 2**20
MOST_PACKED = 32 * 2**20
MOST_UNPACKED = 128 * 2**20
MOST_ANSWER = 1000


class Outcome(TypedDict):
    """A line of an outcomes file.

    Attributes:
        id: Id of the fact.
        split: Its split.
        relation: Its relation.
        final: Whether the checkpoint's answer is right.
        curve: One character a point of the curve: `1` right, `0` wrong, `-` not asked.
        answer: What the checkpoint answered; None where only the outcome was kept.
    """

    id: str
    split: str
    relation: str
    final: bool
    curve: str
    answer: str | None


_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "split": (str,),
    "relation": (str,),
    "final": (bool,),
    "curve": (str,),
    "answer": (str, type(None)),
}


class Declared(Config):
    """What no file says and a submitter declares.

    Attributes:
        method: How a checkpoint was made that finetune didn't make.
        seed: Its seed.
        trials: Settings tried before these were chosen.
        repository: Where on the Hub the weights are.
        training_data: What it was trained on.
        heldout: Whether facts of D_Held were among it.
        note: Anything else.
        level: Raised by those who scored or trained again.
    """

    method: str | None = None
    seed: int | None = None
    trials: int | None = None
    repository: str | None = None
    training_data: str | None = None
    heldout: str = "unknown"
    note: str | None = None
    level: Level = "self-reported"


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a source says: the checkpoint's directory, its run, and its scored answers."""

    path: Path | None
    run: Mapping[str, Any] | None
    results: Results | None


def make_record(source: Path, bundle: Bundle, root: Path, declared: Declared | None = None) -> Path:
    """Writes a record and its outcomes from an lm-eval output or a run directory.

    Others may write records under the same root at the same time: every result has a path of
    its own, and the record appears only after its outcomes are whole.

    Args:
        source: A run directory, or a results file or directory of lm-eval. Where the scored
            checkpoint is a run, its provenance and curve go into the record.
        bundle: The bundle.
        root: Directory of records.
        declared: What the source doesn't say.

    Returns:
        Path of the record. A result that is recorded there already keeps its date.

    Raises:
        UserError: If the source is unfinished or of another bundle, or nothing says how the
            checkpoint was made.
    """
    declared = declared or Declared()
    found = _read_source(source, bundle)
    if found.run is None and declared.method is None:
        raise UserError(f"{source} is no run of finetune. Say how it was made with --method NAME.")
    rows, curve = _outcomes(found, bundle)
    content = _packed(rows)
    record: dict[str, Any] = {
        **_identity(found, bundle, declared),
        "outcomes": {"sha256": hashlib.sha256(content).hexdigest(), "rows": len(rows)},
    }
    identifier = record_id(record)
    record["outcomes"]["file"] = f"{identifier}.outcomes.jsonl.gz"
    record["track"] = track_of(record["protocol"], record["method"])
    record |= {
        "id": identifier,
        "base": _base(bundle),
        "trials": _trials(record, declared),
        "level": declared.level,
        "repository": declared.repository,
        "metrics": recompute(bundle, rows, len(curve)),
        "curve": curve,
        "cost": _cost(found, bundle),
        "environment": _environment(found),
        "training_data": _training_data(found, declared),
        "note": declared.note,
        "recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return _write(parse(Record, record, "record"), rows, root)


def _write(record: Record, rows: list[Outcome], root: Path) -> Path:
    content = record.model_dump(mode="json")
    path = root / place(content)
    files.write_jsonl(path.with_name(record.outcomes.file), rows)
    content["recorded"] = _date_of(path) or content["recorded"]
    files.write_json(path, content)
    return path


def _date_of(path: Path) -> str | None:
    """When a result was recorded first; None if it wasn't, or the record is broken."""
    try:
        return load_record(path)[0].recorded
    except UserError:
        return None


def _packed(rows: list[Outcome]) -> bytes:
    """The uncompressed content of an outcomes file, as `files.write_jsonl` writes it."""
    return "".join(files.dumps(row) + "\n" for row in rows).encode()


def _read_source(source: Path, bundle: Bundle) -> _Evidence:
    if (source / RUN).is_file():
        return _Evidence(source, _run_of(source, bundle), None)
    results = read_results(source, bundle)
    local = Path(results.pretrained) if results.pretrained else None
    path = local if local and local.is_dir() else None
    run = _run_of(path, bundle) if path else None
    if run and results.weights_sha256 not in (None, run["weights_sha256"]):
        raise UserError(f"{source} is of other weights than {path} holds now. Score it again.")
    return _Evidence(path, run, results)


def _run_of(path: Path, bundle: Bundle) -> dict[str, Any] | None:
    if not (path / RUN).is_file():
        return None
    run = dict(files.read_json(path / RUN))
    if run["bundle_sha256"] != bundle.sha256:
        raise UserError(f"{path} was trained on another bundle than {bundle.path}. Give --bundle.")
    if run.get("foreign_base"):
        raise UserError(
            f"{path} was trained from another base than the bundle's, so its stability says "
            "nothing about forgetting. Build a bundle for that base, and train again."
        )
    if checkpoint.weights_sha256(path) != run["weights_sha256"]:
        raise UserError(f"The weights in {path} were changed after training. Train again.")
    return run


def _identity(found: _Evidence, bundle: Bundle, declared: Declared) -> dict[str, Any]:
    run = found.run
    if run:
        protocol = {"name": run["protocol"]["name"], "sha256": run["protocol_sha256"]}
        return {
            "bundle_sha256": bundle.sha256,
            "weights_sha256": run["weights_sha256"],
            "method": run["method"],
            "protocol": protocol,
            "seed": run["seed"],
        }
    return {
        "bundle_sha256": bundle.sha256,
        "weights_sha256": found.results.weights_sha256 if found.results else None,
        "method": {"name": declared.method, "settings": {}},
        "protocol": None,
        "seed": declared.seed,
    }


def _base(bundle: Bundle) -> dict[str, Any]:
    base = bundle.manifest["base"]
    return {key: base.get(key) for key in ("pretrained", "revision", "weights_sha256")}


def track_of(protocol: Mapping[str, Any] | None, method: Mapping[str, Any]) -> str:
    """Returns the track of a result, of what its record says alone.

    Closed is a recipe of the package, known by its hash, with one of the method's trials.
    """
    recipe = find_recipe(protocol["name"], protocol["sha256"]) if protocol else None
    if recipe is None or method["name"] not in SETTINGS:
        return "open"
    try:
        settings = resolve(method["name"], method["settings"])
    except UserError:
        return "open"
    return grid.track(recipe, method["name"], settings, None)


def _trials(record: Mapping[str, Any], declared: Declared) -> int | None:
    """On the closed track the recipe says how many settings are tried."""
    if declared.trials is not None or record["track"] != "closed":
        return declared.trials
    return len(grid.trials(load_protocol(record["protocol"]["name"]), record["method"]["name"]))


def _outcomes(found: _Evidence, bundle: Bundle) -> tuple[list[Outcome], list[dict[str, Any]]]:
    curve, strings = _read_curve(found.path, bundle) if found.run and found.path else ([], {})
    if found.results:
        final, answers = found.results.correct, found.results.answers
    else:
        final, answers = {key: text[-1] == "1" for key, text in strings.items()}, {}
    rows = [
        Outcome(
            id=item.fact.id,
            split=split,
            relation=item.fact.relation,
            final=final[item.fact.id],
            curve=strings.get(item.fact.id, ""),
            answer=answers.get(item.fact.id),
        )
        for split in SPLITS
        for item in bundle.splits[split]
        if item.fact.id in final
    ]
    return rows, curve


def _read_curve(path: Path, bundle: Bundle) -> tuple[list[dict[str, Any]], dict[str, str]]:
    points = [
        {"step": line["step"], "loss": line["loss"]} for line in files.read_jsonl(path / CURVE)
    ]
    strings = {row["id"]: row["correct"] for row in files.read_jsonl(path / OUTCOMES)}
    expected = {item.fact.id for name in SCORED for item in bundle.splits[name]}
    if not expected <= set(strings) or any(len(text) != len(points) for text in strings.values()):
        raise UserError(f"{path / OUTCOMES} doesn't fit the bundle or the curve. Train again.")
    return points, {key: text for key, text in strings.items() if key in expected}


def _cost(found: _Evidence, bundle: Bundle) -> dict[str, Any]:
    if not found.run or not found.path:
        return {}
    *_, last = files.read_jsonl(found.path / CURVE)
    told = {
        "steps": found.run["steps"],
        "tokens": last.get("tokens"),
        "extra_forwards": last.get("teacher_tokens"),
        "extra_data": _extra_data(found.run["method"], bundle),
    }
    gpus = re.match(r"(\d+) x ", str(found.run["environment"].get("device")))
    if gpus and (found.path / LOG).is_file():
        seconds = files.read_json(found.path / LOG)["seconds"]
        told["gpu_hours"] = round(int(gpus[1]) * seconds / 3600, 4)
    return told


def _extra_data(method: Mapping[str, Any], bundle: Bundle) -> int | None:
    from factual_forgetting.protocol.methods import METHODS

    if method["name"] not in METHODS:  # A run of another version.
        return None
    data = METHODS[method["name"]].data(bundle, resolve(method["name"], method["settings"]))
    seen = {fact.id for facts in (data.repeated, data.first, data.last) for fact in facts}
    return len(seen - {item.fact.id for name in (KNOWN, UNKNOWN) for item in bundle.splits[name]})


def _environment(found: _Evidence) -> dict[str, Any]:
    """Reports the run and the scoring; of neither known, the matcher that scored again."""
    made = dict(found.run["environment"]) if found.run else _recorder()
    if found.run:
        protocol, resolved = found.run["protocol"], found.run.get("resolved", {})
        made["attention"] = resolved.get("attention") or protocol["attention"]
        made["dtype"], made["batch_size"] = protocol["checkpoint_dtype"], protocol["batch_size"]
    if found.results:
        scored = found.results.environment
        names = ("lm_eval", "transformers")
        versions = {name: scored[name] for name in names if scored.get(name)}
        made["packages"] = {**made["packages"], **versions}
        made["dtype"] = scored.get("dtype") or made.get("dtype")
        made["batch_size"] = scored.get("batch_size") or made.get("batch_size")
        made["device"] = made.get("device") or scored.get("device")
    told = {key: made[key] for key in EnvironmentOf.model_fields if made.get(key) is not None}
    return {**told, **({"batch_size": str(told["batch_size"])} if "batch_size" in told else {})}


def _recorder() -> dict[str, Any]:
    here = environment()
    name = "factual-forgetting"
    packages = {name: here["packages"][name]} if name in here["packages"] else {}
    return {"packages": packages, "commit": here.get("commit"), "dirty": here.get("dirty")}


def _training_data(found: _Evidence, declared: Declared) -> dict[str, Any]:
    if found.run and declared.training_data is None:
        told = "the bundle's training splits, by finetune"
        return {"description": told, "heldout": "excluded"}
    told_data = {"description": declared.training_data, "heldout": declared.heldout}
    return parse(TrainingDataOf, told_data, "training data").model_dump()


def recompute(bundle: Bundle, rows: list[Outcome], points: int) -> dict[str, Any]:
    """Computes all metrics of a record from its outcomes and the bundle."""
    correct = {row["id"]: row["final"] for row in rows}
    return {**final_metrics(bundle, correct), **curve_metrics(curve_points(rows, points))}


def curve_points(rows: list[Outcome], length: int) -> list[dict[str, float | None]]:
    """Computes task learning, plasticity and stability at each point of the curve."""
    texts = {split: [row["curve"] for row in rows if row["split"] == split] for split in SCORED}
    return [
        {
            METRIC_OF_SPLIT[split]: share_correct("".join(text[point] for text in texts[split]))
            for split in SCORED
        }
        for point in range(length)
    ]


def load_record(path: Path) -> tuple[Record, list[Outcome]]:
    """Reads a record and its outcomes, whoever wrote them: size, form and hash are checked.

    Raises:
        UserError: If either is malformed, too large, or no plain file, or the outcomes aren't
            those of the record.
    """
    record = parse(Record, _read_object(path), str(path))
    beside = path.with_name(record.outcomes.file)
    content = _unpack(beside)
    if hashlib.sha256(content).hexdigest() != record.outcomes.sha256:
        raise UserError(f"{beside} was changed: its hash isn't the one in {path.name}.")
    rows = [_row(line, beside, number) for number, line in enumerate(content.splitlines(), 1)]
    if len(rows) != record.outcomes.rows:
        raise UserError(f"{beside} has {len(rows)} rows, not {record.outcomes.rows}.")
    for row in rows:
        if set(row["curve"]) - {"0", "1", NOT_ASKED} or len(row["curve"]) != len(record.curve):
            raise UserError(f"{beside}: the curve of {row['id']} is malformed.")
    return record, rows


def _read_object(path: Path) -> dict[str, Any]:
    _require_plain(path, MOST_RECORD)
    try:
        value = files.read_json(path)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply. Record the result again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no record. Record the result again.")
    return value


def _require_plain(path: Path, most: int) -> None:
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path} is no plain file. Record the result again.")
    if path.stat().st_size > most:
        raise UserError(f"{path} is larger than {most // 2**20} MB. Record the result again.")


def _unpack(path: Path) -> bytes:
    """Decompresses up to a bound, so that a bomb costs its bound and no more."""
    _require_plain(path, MOST_PACKED)
    try:
        with gzip.open(path) as stream:
            content = stream.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not readable ({error}). Record the result again.") from None
    if len(content) > MOST_UNPACKED:
        raise UserError(f"{path} unpacks to more than {MOST_UNPACKED // 2**20} MB. It is refused.")
    return content


def _row(line: bytes, path: Path, number: int) -> Outcome:
    try:
        row = files.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}).") from None
    fits = isinstance(row, dict) and row.keys() == _KINDS.keys()
    if not fits or not all(isinstance(row[key], kinds) for key, kinds in _KINDS.items()):
        raise UserError(f"{path}, line {number}: not an outcome ({', '.join(_KINDS)}).")
    if len(row["answer"] or "") > MOST_ANSWER:
        raise UserError(f"{path}, line {number}: an answer of more than {MOST_ANSWER} characters.")
    found: Outcome = row
    return found


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


def load_records(root: Path) -> Iterator[tuple[Record, list[Outcome]]]:
    """Yields the records under a directory with their outcomes, with a progress bar."""
    paths = find_records(root)
    yield from map(load_record, tqdm(paths, desc="read", unit="record", leave=False, delay=2))
