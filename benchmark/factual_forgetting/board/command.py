"""`factual-forgetting record | validate | board`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.errors import UserError

DEFAULT_ROOT = Path("leaderboard/records")


def add_parser(subparsers: Any) -> None:
    """Adds the commands of the leaderboard."""
    record = subparsers.add_parser("record", help="write a record of an lm-eval output or a run")
    record.add_argument("source", nargs="+", type=Path, help="run directory or lm-eval results")
    record.add_argument("--bundle", default="almanac", help="directory, or almanac (the default)")
    record.add_argument("--method", help="how a checkpoint was made that finetune didn't make")
    record.add_argument("--seed", type=int, help="its seed")
    record.add_argument("--output_path", type=Path, default=DEFAULT_ROOT, metavar="RECORDS")
    record.set_defaults(run=_record)

    validate = subparsers.add_parser("validate", help="recompute every number of records")
    validate.add_argument("records", nargs="?", type=Path, default=DEFAULT_ROOT)
    validate.add_argument("--bundle", default="almanac", help="directory, or almanac (the default)")
    validate.set_defaults(run=_validate)

    board = subparsers.add_parser("board", help="print the board of records")
    board.add_argument("records", nargs="?", type=Path, default=DEFAULT_ROOT)
    board.add_argument("--format", choices=("markdown", "json"), default="markdown")
    board.add_argument("--plot", type=Path, help="also draw stability against plasticity there")
    board.set_defaults(run=_board)


def _record(args: argparse.Namespace) -> None:
    from factual_forgetting.board.record import make_record

    bundle = load_bundle(locate_bundle(args.bundle))
    for source in args.source:
        path = make_record(source, bundle, args.output_path, args.method, args.seed)
        sys.stdout.write(f"{path}\n")


def _validate(args: argparse.Namespace) -> None:
    from factual_forgetting.board.record import find_records
    from factual_forgetting.board.validate import validate

    bundle = load_bundle(locate_bundle(args.bundle))
    paths = find_records(args.records)
    faults = [fault for path in paths for fault in validate(path, bundle)]
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    if faults:
        raise UserError(f"{len(faults)} faults in {len(paths)} records. Record the results again.")
    sys.stdout.write(f"{len(paths)} records hold: every number follows from its outcomes.\n")


def _board(args: argparse.Namespace) -> None:
    from factual_forgetting.board.board import make_board, markdown
    from factual_forgetting.board.record import find_records, load_record

    board = make_board(load_record(path) for path in find_records(args.records))
    if args.plot:
        from factual_forgetting.board.plots import plot_frontier

        if len(board["bundles"]) > 1:
            raise UserError("The records are of several bundles; plot each bundle's by itself.")
        plot_frontier(board["bundles"][0], args.plot)
    text = markdown(board) if args.format == "markdown" else files.dumps(board, indent=2)
    sys.stdout.write(text + "\n")
