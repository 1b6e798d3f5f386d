"""`factual-forgetting drift`: the drift of held-out subjects, by checkpoint and layer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.bundle.manifest import HELDOUT, SPLITS, Bundle, load_bundle, locate_bundle
from factual_forgetting.engines.models import load_causal_lm, quiet
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.mechanism.drift import Row, all_layers, measure, middle_layer
from factual_forgetting.plotting import new_figure, plain_text, require_image, save_figure
from factual_forgetting.terminal import table, tell

_MIDDLE, _ALL = "middle", "all"
_DTYPE = "float32"
_DIGITS = 7  # No model has a million layers.
_SHAPE = ("layers", "hidden_size", "vocab_size")
_ONE_BASE = "Give checkpoints that descend from one base."
_MEASURES = {"cosine": "drift: 1 - cosine to the reference", "cka": "linear CKA with the reference"}
_HEADERS = {"cosine": "1 - cosine", "cka": "CKA"}


def add_parser(subparsers: Any) -> None:
    """Adds `drift`."""
    told = "how far the hidden states of known subjects moved in training"
    parser = subparsers.add_parser("drift", help=told)
    add = parser.add_argument
    add("reference", metavar="A", help="directory, or almanac: where states were")
    add("checkpoints", metavar="B", nargs="+", help="where they are now; several in order")
    told = "directory, almanac (the default), or name@commit on the Hub"
    add("--bundle", default="almanac", help=told)
    add("--split", choices=SPLITS, default=HELDOUT)
    add("--relation", help="facts of this relation only")
    add("--layers", default=_MIDDLE, help="middle (the default), all, or numbers as in 3,5")
    add("--device", default=None)
    add("--output_path", type=Path, help="a .png or .svg; a .json goes beside it")
    parser.set_defaults(run=_drift)


def _drift(args: argparse.Namespace) -> None:
    _require_layers(args.layers)
    if args.output_path:
        require_image(args.output_path)
        beside = args.output_path.with_suffix(".json")
        outputs.require_file(beside, outputs.json_with("checkpoint", "layer", "cosine", "cka"))
    facts = _facts(load_bundle(locate_bundle(args.bundle)), args.split, args.relation)
    rows = _measure_all(args.reference, args.checkpoints, facts, args.layers, args.device)
    if args.output_path:
        files.write_json(beside, rows)
        _draw(rows, args.output_path, f"{args.split}, {args.relation or 'all relations'}")
    cells = [
        {"checkpoint": r["checkpoint"], "layer": r["layer"]}
        | {told: "-" if r[key] is None else f"{r[key]:.4f}" for key, told in _HEADERS.items()}
        | {"facts": r["n"]}
        for r in rows
    ]
    tell(table([list(row.values()) for row in cells], list(cells[0])))


def _facts(bundle: Bundle, split: str, relation: str | None) -> list[Fact]:
    facts = [item.fact for item in bundle.splits[split]]
    if not facts:
        there = ", ".join(name for name, items in bundle.splits.items() if items)
        raise InputError(f"{bundle.path} has no facts in {split}. Give --split one of {there}.")
    chosen = [fact for fact in facts if relation in (None, fact.relation)]
    if not chosen:
        there = ", ".join(sorted({fact.relation for fact in facts}))
        raise InputError(f"{split} has no facts of {relation}. Give --relation one of {there}.")
    return chosen


def _measure_all(
    reference: str, checkpoints: Sequence[str], facts: Sequence[Fact], told: str, device: str | None
) -> list[Row]:
    """Returns what `measure` does of each checkpoint, in order, each row with its `checkpoint`."""
    first, *others = [checkpoint.locate(name) for name in (reference, *checkpoints)]
    for path in others:
        _require_same_shape(first, path)
    quiet()
    before = load_causal_lm(first, _DTYPE, device)
    layers = _layers(told, before[0])
    return [
        {"checkpoint": name, **row}
        for name, path in zip(checkpoints, others, strict=True)
        for row in _compare(before, path, facts, layers, device)
    ]


def _require_same_shape(reference: Path, path: Path) -> None:
    expected, found = _shape(reference), _shape(path)
    differing = [key for key in _SHAPE if found[key] != expected[key]]
    if differing:
        told = ", ".join(f"{key} {found[key]} instead of {expected[key]}" for key in differing)
        raise InputError(f"{path} has another shape than {reference}: {told}. {_ONE_BASE}")


def _shape(path: Path) -> dict[str, Any]:
    config = files.read_json(path / "config.json", ours=False)
    text = config.get("text_config", config)
    return {**checkpoint.shape(path), "vocab_size": text.get("vocab_size")}


def _require_layers(told: str) -> None:
    numbers = (part.isdecimal() and len(part) < _DIGITS for part in told.split(","))
    if told not in (_MIDDLE, _ALL) and not all(numbers):
        raise InputError(f"--layers {told} is neither {_MIDDLE}, {_ALL} nor numbers as in 3,5.")


def _layers(told: str, model: Any) -> list[int]:
    if told in (_MIDDLE, _ALL):
        return [middle_layer(model)] if told == _MIDDLE else all_layers(model)
    return sorted({int(part) for part in told.split(",")})


def _compare(
    base: tuple[Any, Any], path: Path, facts: Sequence[Fact], layers: list[int], device: str | None
) -> list[Row]:
    model, tokenizer = base
    after, other = load_causal_lm(path, _DTYPE, device)
    prompts = [question_prompt(fact.question) for fact in facts]
    expected, found = ((t.get_vocab(), t(prompts)["input_ids"]) for t in (tokenizer, other))
    if expected != found:
        raise InputError(
            f"{path} has another tokenizer than the reference: their states belong to different "
            f"tokens. {_ONE_BASE}"
        )
    return measure(model, after, tokenizer, facts, layers)


def _draw(rows: Sequence[Row], path: Path, facts: str) -> None:
    """Draws drift and CKA over layers, a line a checkpoint; of one layer, over checkpoints."""
    size = len({row["layer"] for row in rows})
    figure = new_figure(11, 4.8)
    for panel, (key, told) in zip(figure.subplots(1, 2), _MEASURES.items(), strict=True):
        if size == 1:
            _over_checkpoints(panel, rows, key)
        else:
            _over_layers(panel, [rows[i : i + size] for i in range(0, len(rows), size)], key)
        panel.set_ylabel(told)
        panel.grid(alpha=0.25)
    where = f", layer {rows[0]['layer']}" if size == 1 else ""
    figure.suptitle(f"States of subjects' last tokens: {plain_text(facts)}{where}")
    save_figure(figure, path)


def _over_checkpoints(panel: Any, rows: Sequence[Row], key: str) -> None:
    panel.plot(range(len(rows)), [row[key] for row in rows], "o-")
    names = [plain_text(row["checkpoint"]) for row in rows]
    panel.set_xticks(range(len(rows)), names, rotation=30, ha="right", fontsize=8)


def _over_layers(panel: Any, groups: Sequence[Sequence[Row]], key: str) -> None:
    for rows in groups:
        x = [row["layer"] for row in rows]
        panel.plot(x, [row[key] for row in rows], "o-", label=plain_text(rows[0]["checkpoint"]))
    panel.set_xticks(x)
    panel.set_xlabel("layer (0: embeddings)")
    panel.legend(fontsize=8)
