"""`factual-forgetting record | validate | board | diff | official`."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

from factual_forgetting import outputs
from factual_forgetting.board.board import curves_of, make_board
from factual_forgetting.board.bundles import (
    bundles_at_hand,
    fetch_official,
    make_official,
    official,
    references_for,
    sources,
)
from factual_forgetting.board.dataset import TABLE
from factual_forgetting.board.links import Links
from factual_forgetting.board.making import Declared, make_record, record_curve
from factual_forgetting.board.page import BOARD, INDEX, tell_records, write_page
from factual_forgetting.board.record import find_records, load_records
from factual_forgetting.board.tables import diff, diff_text, render_board
from factual_forgetting.board.validate import check_references, render_findings, validate
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.config import parse, parse_count, parse_seed
from factual_forgetting.errors import InputError
from factual_forgetting.modelargs import parse_settings
from factual_forgetting.plotting import require_image
from factual_forgetting.scoring.frontier import draw_frontier

DEFAULT_ROOT = Path("leaderboard/records")
WARNED = 3
FORMATS = ("markdown", "latex", "csv", "html", "json")


def add_parser(subparsers: Any) -> None:
    """Adds the commands of the leaderboard."""
    _add_record(subparsers)
    validate = subparsers.add_parser("validate", help="recompute every number of records")
    validate.add_argument("records", nargs="?", type=Path, default=DEFAULT_ROOT)
    _add_bundles(validate)
    validate.add_argument("--format", choices=("rich", "json", "github"), default="rich")
    validate.set_defaults(run=_validate)

    board = subparsers.add_parser("board", help="print the board of records, or write its page")
    board.add_argument("records", nargs="?", type=Path, default=DEFAULT_ROOT)
    _add_bundles(board)
    board.add_argument("--format", choices=FORMATS, default="markdown")
    board.add_argument("--output_path", type=Path, help="directory for --format html")
    told = "https address of the folder above RECORDS, to link them from the page"
    board.add_argument("--home", metavar="URL", help=told)
    board.add_argument("--plot", type=Path, help="also draw stability against plasticity there")
    board.set_defaults(run=_board)

    diff = subparsers.add_parser("diff", help="show what a change of records does to the board")
    diff.add_argument("before", type=Path, help="directory of records")
    diff.add_argument("after", type=Path, help="directory of records")
    _add_bundles(diff)
    diff.set_defaults(run=_diff)
    _add_official(subparsers)


def _add_official(subparsers: Any) -> None:
    told = "tell where the official bundles are, or add one"
    parser = subparsers.add_parser("official", help=told)
    parser.add_argument("bundle", nargs="?", metavar="DIR", help="bundle to add")
    parser.add_argument("--version", default="v1", help="of the bundle of its base (v1)")
    words = "where its facts are; without it they are copied"
    parser.add_argument("--dataset", metavar="OWNER/DATASET@COMMIT", help=words)
    parser.add_argument("--bundles", type=Path, default=DEFAULT_ROOT.parent / "bundles")
    parser.set_defaults(run=_official)


def _add_record(subparsers: Any) -> None:
    record = subparsers.add_parser("record", help="write a record of an lm-eval output or a run")
    record.add_argument("source", nargs="+", type=Path, help="run directory or lm-eval results")
    record.add_argument("--bundle", default="almanac", help="directory, or almanac (the default)")
    record.add_argument(
        "--submitter", required=True, metavar="NAME", help="who answers for it: a-z, 0-9 and -"
    )
    record.add_argument("--method", help="how a checkpoint was made that finetune didn't make")
    settings = "its settings: KEY=VALUE,... or JSON"
    record.add_argument("--method_args", metavar="ARGS", help=settings)
    curve = "the results are of checkpoints of one run: one record with their curve"
    record.add_argument("--curve", action="store_true", help=curve)
    record.add_argument("--seed", type=parse_seed, help="its seed")
    record.add_argument("--trials", type=parse_count, help="settings tried before these")
    record.add_argument("--repository", metavar="OWNER/NAME", help="where its weights are")
    record.add_argument("--training_data", metavar="WORDS", help="what it was trained on")
    words, told = ("excluded", "included", "unknown"), "whether facts of D_Held were among that"
    record.add_argument("--heldout", choices=words, help=f"{told} (excluded for runs)")
    record.add_argument("--note", metavar="WORDS")
    record.add_argument("--output_path", type=Path, default=DEFAULT_ROOT, metavar="RECORDS")
    record.set_defaults(run=_record)


def _add_bundles(parser: argparse.ArgumentParser) -> None:
    told = "bundles of the records; almanac is always at hand"
    parser.add_argument("--bundle", nargs="+", default=[], metavar="DIR", help=told)


def _record(args: argparse.Namespace) -> None:
    outputs.require_folder(args.output_path)
    told = {key: getattr(args, key) for key in Declared.model_fields}
    told["method_args"] = parse_settings(args.method_args) if args.method_args else None
    declared = parse(Declared, told, "record")
    if args.curve:
        bundle = load_bundle(locate_bundle(args.bundle))
        sys.stdout.write(f"{record_curve(args.source, bundle, args.output_path, declared)}\n")
        return
    if args.seed is not None and len(args.source) > 1:
        raise InputError("A seed is of one result. Record them one by one, each with its --seed.")
    bundle = load_bundle(locate_bundle(args.bundle))
    for source in args.source:
        sys.stdout.write(f"{make_record(source, bundle, args.output_path, declared)}\n")


def _validate(args: argparse.Namespace) -> int:
    count = len(find_records(args.records))
    folder = args.records.parent / "bundles"
    named = official(folder) if folder.is_dir() else None
    bundles = bundles_at_hand(args.bundle)
    bundles |= fetch_official(folder, bundles)
    findings = validate(args.records, bundles, named)
    findings += check_references(named or {}, bundles)
    told = render_findings(findings, args.format, color=sys.stdout.isatty())
    sys.stdout.write(f"{told}\n" if told else "")
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise InputError(f"{errors} errors in {count} records. Record the results again.")
    sys.stderr.write(f"{count} records hold: every number follows from its outcomes.\n")
    return WARNED if findings else 0


def _board(args: argparse.Namespace) -> None:
    if (args.format == "html") != (args.output_path is not None):
        raise InputError("The page needs a directory, the other formats none: --output_path DIR.")
    if args.output_path:
        outputs.require_folder(args.output_path, INDEX, BOARD, TABLE, begun=_paged_there)
    if args.plot:
        require_image(args.plot)
    gc.set_threshold(100_000)  # Outcomes hold no circles; looking for some takes a fifth longer.
    links = Links.beside(args.records, args.home)
    bundles, entries = bundles_at_hand(args.bundle), load_records(args.records)
    if args.format == "html":
        entries = tell_records(entries, bundles, args.output_path, links)
    board = make_board(entries, references_for(args.records, bundles))
    if args.plot:
        if len(board["bundles"]) > 1:
            raise InputError("The records are of several bundles; plot each bundle's by itself.")
        draw_frontier(curves_of(board["bundles"][0]), args.plot)
    if args.format == "html":
        told = str(write_page(board, bundles, args.output_path, links))
    else:
        told = render_board(board, args.format)
    sys.stdout.write(f"{told}\n")


def _paged_there(folder: Path) -> bool:
    return outputs.json_with("format", "records", "bundles")(folder / BOARD)


def _diff(args: argparse.Namespace) -> None:
    bundles = bundles_at_hand(args.bundle)
    before, after = (
        make_board(load_records(records), references_for(records, bundles))
        for records in (args.before, args.after)
    )
    sys.stdout.write(diff_text(diff(before, after)) + "\n")


def _official(args: argparse.Namespace) -> None:
    if args.bundle:
        bundle = load_bundle(locate_bundle(args.bundle))
        path = make_official(bundle, args.bundles, args.version, args.dataset)
        sys.stdout.write(f"{path}\n")
        return
    named = official(args.bundles)
    for sha256, place in sources(args.bundles).items():
        sys.stdout.write(f"{named[sha256].name}\t{sha256[:12]}\t{place}\n")
