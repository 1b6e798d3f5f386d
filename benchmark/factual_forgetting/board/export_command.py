"""`factual-forgetting export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting import files, outputs
from factual_forgetting.board.bundles import bundles_at_hand
from factual_forgetting.board.every_eval_ever import every_eval_ever
from factual_forgetting.board.exports import Exported, Home
from factual_forgetting.board.hub import CARD, eval_results, model_card
from factual_forgetting.board.record import find_records
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.errors import InputError

FORMS: dict[str, Callable[[Exported], dict[str, bytes]]] = {
    "every_eval_ever": every_eval_ever,
    "eval_results": eval_results,
    "model_card": model_card,
}
_MARK = b"factual-forgetting"


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("export", help="write records as other places take them")
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD", help="or a directory")
    told = "the database of that name, results and card of the model's repository on the Hub"
    parser.add_argument("--to", choices=tuple(FORMS), required=True, help=told)
    told = "bundles of the records: directories, or OWNER/DATASET@COMMIT"
    parser.add_argument("--bundle", nargs="+", default=[], metavar="DIR", help=told)
    parser.add_argument("--output_path", type=Path, required=True)
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    outputs.require_folder(args.output_path)
    places = {load_bundle(locate_bundle(name)).sha256: name for name in args.bundle}
    home = Home(bundles_at_hand(args.bundle), places)
    written: set[str] = set()
    with outputs.taken(args.output_path):
        for path in _records(args.records):
            found = FORMS[args.to](home.read(path))
            if twice := sorted(written & found.keys()):
                raise InputError(f"{twice[0]} would be of two records. Export them one by one.")
            written |= found.keys()
            for name, content in found.items():
                _write(args.output_path / name, content)
                sys.stdout.write(f"{args.output_path / name}\n")


def _records(places: Sequence[Path]) -> Iterator[Path]:
    found = [p for place in places for p in ([place] if place.is_file() else find_records(place))]
    yield from tqdm(list(dict.fromkeys(found)), desc="export", unit="record", leave=False, delay=2)


def _write(path: Path, content: bytes) -> None:
    """Writes over what this command wrote, but over no card that somebody has edited."""

    def ours(there: Path) -> bool:
        held = there.read_bytes()
        return held == content or (path.name != CARD and _MARK in held)

    outputs.require_file(path, ours)
    files.write_atomic(path, content)
