"""Runs without training: their outcomes are drawn or given."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.board.form import OUTCOMES_SUFFIX, place, record_id
from factual_forgetting.board.making import Declared, make_record
from factual_forgetting.board.record import load_record, recompute
from factual_forgetting.bundle.manifest import (
    HELDOUT,
    KNOWN,
    REPLAY,
    SPLITS,
    UNKNOWN,
    VALIDATION,
    Bundle,
    Item,
    write_bundle,
)
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.protocol.curve import CURVE, METRIC_OF_SPLIT, OUTCOMES
from factual_forgetting.protocol.recipe import load_protocol, protocol_sha256
from factual_forgetting.protocol.run import RUN
from factual_forgetting.scoring.styles import FEWSHOT

ME = Declared(submitter="me", trials=1)
RELATIONS = ("country", "place_of_birth")
BASE = {
    "pretrained": "almanac",
    "revision": None,
    "weights_sha256": "b" * 64,
    "shape": {},
    "lineage": None,
}


def make_bundle(
    path: Path,
    known: int = 20,
    unknown: int = 20,
    heldout: int = 20,
    matcher: str = MATCHER_VERSION,
) -> Bundle:
    """A bundle of two relations whose base answers all of D_Held."""
    sizes = {KNOWN: known, UNKNOWN: unknown, HELDOUT: heldout, VALIDATION: 4, REPLAY: 4}
    splits = {
        split: [_item(split, index) for index in range(sizes.get(split, 0))] for split in SPLITS
    }
    details: dict[str, Any] = {
        "base": BASE,
        "heldout_dropped_for_overlap": 0,
        "heldout_subjects_as_training_objects": 1,
        "source": {},
        "settings": {"min_highly_known": 0.3},
        "relations": {},
        "majority_baseline": {"micro": None, "macro": None},
        "labels": {"matcher": matcher},
    }
    return write_bundle(path, splits, {}, details)


def _item(split: str, index: int) -> Item:
    relation = RELATIONS[index % 2]
    subject = f"{split.title()} {index}"
    fact = Fact.make(relation, subject, f"{relation} of {subject}?", (f"Answer {index % 5}",))
    right = split != UNKNOWN
    return Item(fact, "1" if right else "0", {"zero_shot": right, "fresh": right})


def drawn(bundle: Bundle, seed: int, learn: float, forget: float, points: int = 12) -> list[str]:
    """Curves in which facts of D_Unk are learned and facts of D_Held forgotten at a rate."""
    rng = random.Random(seed)
    curves = []
    for split in METRIC_OF_SPLIT:
        start = split != UNKNOWN
        rate = {KNOWN: 0.0, UNKNOWN: learn, HELDOUT: forget}[split]
        for _ in bundle.splits[split]:
            text, right = "", start
            for _ in range(points):
                text += "01"[right]
                right ^= right == start and rng.random() < rate
            curves.append(text)
    return curves


def write_run(
    path: Path,
    bundle: Bundle,
    curves: Sequence[str],
    method: str = "sft",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    protocol: str = "almanac-v1",
    **changed: Any,
) -> Path:
    """What finetune leaves behind, with the outcomes given in the order of the splits."""
    recipe = load_protocol(protocol).model_copy(update=changed)
    facts = [(split, item) for split in METRIC_OF_SPLIT for item in bundle.splits[split]]
    rows = [
        {"id": item.fact.id, "split": split, "correct": text}
        for (split, item), text in zip(facts, curves, strict=True)
    ]
    points = [
        {
            "step": recipe.evaluate_every * i,
            "loss": 1 / (i + 1),
            "tokens": 9 * i,
            "teacher_tokens": i,
        }
        for i in range(len(curves[0]))
    ]
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(f"{path.name} {method} {seed} {curves}".encode())
    files.write_jsonl(path / CURVE, points)
    files.write_jsonl(path / OUTCOMES, rows)
    content = {
        "bundle_sha256": bundle.sha256,
        "base": bundle.manifest["base"],
        "method": {"name": method, "settings": dict(settings or {})},
        "protocol": recipe.model_dump(mode="json"),
        "protocol_sha256": protocol_sha256(recipe),
        "seed": seed,
        "steps": points[-1]["step"],
        "weights_sha256": checkpoint.weights_sha256(path),
        "environment": {"device": "cpu, 1 threads", "python": "3.11.2", "packages": {}},
    }
    files.write_json(path / RUN, content)
    return path


def publish(
    root: Path, bundle: Bundle, curves: Sequence[str], *run: Any, declared: Any = None, **more: Any
) -> Path:
    """Writes a run as `write_run` does, and its record under `records/` of a directory."""
    root.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root))
    path = write_run(folder / "run", bundle, curves, *run, **more)
    given = ME.model_copy(update=declared or {})
    return answered_record(path, bundle, root / "records", given)


def answered_record(run: Path, bundle: Bundle, root: Path, declared: Declared = ME) -> Path:
    """Records a run as if its checkpoint had been scored: with the answers that it gave."""
    with tempfile.TemporaryDirectory() as scratch:
        path = make_record(run, bundle, Path(scratch), declared)
        content = files.read_json(path)
        rows = list(files.read_jsonl(path.with_name(content["outcomes"]["file"])))
    for row, (_, item) in zip(rows, bundle.items(), strict=False):
        row["answer"] = item.fact.answers[0] if row["final"] else "Nowhere"
    return write_record(root, content, rows)


def any_record(
    root: Path, bundle: Bundle, kept: int, method: str = "instruct", style: str = FEWSHOT
) -> Path:
    """Records a checkpoint that never trained on D_train; it has so many facts of D_Held right."""
    with tempfile.TemporaryDirectory() as scratch:
        run = write_run(Path(scratch) / "run", bundle, drawn(bundle, kept, 0.0, 0.0), method)
        path = answered_record(run, bundle, Path(scratch) / "records")
        content = files.read_json(path)
        outcomes = load_record(path)[1]
    held = [one.id for one in outcomes if one.split == HELDOUT]
    told = [one.model_copy(update={"curve": ""}) for one in outcomes]
    for index, one in enumerate(told):
        if one.id in held[kept:]:
            told[index] = one.model_copy(update={"final": False, "answer": "Nowhere"})
    metrics = recompute(bundle, told, 0, style=style, trained=False)
    content |= {"style": style, "trained": False, "protocol": None, "resolved_protocol": None}
    content |= {"curve": [], "cost": {}, "seed": None, "track": "open", "metrics": metrics}
    content["weights_sha256"] = hashlib.sha256(f"{method} {kept}".encode()).hexdigest()
    return write_record(root, content, [one.model_dump() for one in told])


def write_record(root: Path, content: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Writes a record and its outcomes where they belong, with an id and hashes that fit."""
    text = "".join(files.dumps(row) + "\n" for row in rows).encode()
    content["outcomes"] |= {"sha256": hashlib.sha256(text).hexdigest(), "rows": len(rows)}
    content["id"] = record_id(content)
    content["outcomes"]["file"] = content["id"] + OUTCOMES_SUFFIX
    path = root / place(content)
    files.write_jsonl(path.with_name(content["outcomes"]["file"]), rows)
    files.write_json(path, content)
    return path
