"""`factual-forgetting record | submit | validate | board | diff | official`."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from factual_forgetting import outputs
from factual_forgetting.board.board import curves_of, make_board
from factual_forgetting.board.bundles import (
    bundles_at_hand,
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
from factual_forgetting.board.submission import (
    change,
    check,
    next_steps,
    submit,
    write_published,
)
from factual_forgetting.board.tables import diff_text, render_board
from factual_forgetting.board.validate import Finding, render_findings
from factual_forgetting.bundle.manifest import load_bundle, locate_bundle
from factual_forgetting.config import parse, parse_batch_size, parse_count, parse_seed
from factual_forgetting.errors import InputError
from factual_forgetting.modelargs import parse_settings
from factual_forgetting.plotting import require_image
from factual_forgetting.scoring.frontier import draw_frontier
from factual_forgetting.scoring.styles import STYLES, TASK
from factual_forgetting.terminal import note

DEFAULT_ROOT = Path("leaderboard/records")
WARNED = 3
FORMATS = ("markdown", "latex", "csv", "html", "json")


def add_parser(subparsers: Any) -> None:
    """Adds the commands of the leaderboard."""
    _add_record(subparsers)
    _add_submit(subparsers)
    validate = subparsers.add_parser("validate", help="recompute every number of records")
    validate.add_argument("records", nargs="?", type=Path, default=DEFAULT_ROOT)
    _add_bundles(validate)
    told = "leaderboard that it was made of, whose files have to be there unchanged"
    validate.add_argument("--against", type=Path, metavar="LEADERBOARD", help=told)
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
    _add_declared(record)
    record.add_argument("--output_path", type=Path, default=DEFAULT_ROOT, metavar="RECORDS")
    record.set_defaults(run=_record)


def _add_submit(subparsers: Any) -> None:
    told = "score, record and check checkpoints, and say what is left to do"
    submit = subparsers.add_parser("submit", help=told)
    told = "directory of a checkpoint, or pretrained=DIR,peft=DIR,…"
    submit.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT", help=told)
    _add_declared(submit)
    submit.add_argument("--descends", action="store_true", help="declare that the base is theirs")
    submit.add_argument("--batch_size", type=parse_batch_size, default="128")
    submit.add_argument("--device")
    submit.add_argument("--records", type=Path, default=DEFAULT_ROOT)
    told = "branch or commit to compare with (the main branch as fetched last)"
    submit.add_argument("--against", metavar="BRANCH", help=told)
    told = "directory for lm-eval's results"
    submit.add_argument("--output_path", type=Path, required=True, help=told)
    submit.set_defaults(run=_submit)


def _add_declared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--bundle", default="almanac", help="directory, or almanac (the default)")
    add("--submitter", required=True, metavar="NAME", help="who answers for it: a-z, 0-9 and -")
    add("--method", help="how a checkpoint was made that finetune didn't make")
    add("--method_args", metavar="ARGS", help="its settings: KEY=VALUE,... or JSON")
    add("--tasks", choices=tuple(STYLES), default=TASK, help="how it is asked")
    told = "they are checkpoints of one run: one record with their curve"
    add("--curve", action="store_true", help=told)
    add("--seed", type=parse_seed, help="its seed")
    add("--trials", type=parse_count, help="settings tried before these")
    told = "whether it trained on D_train, if no run of finetune says so"
    add("--trained", action=argparse.BooleanOptionalAction, default=None, help=told)
    add("--repository", metavar="OWNER/NAME", help="where its weights are")
    add("--url", help="where the method is told: a paper, its code")
    add("--training_data", metavar="WORDS", help="what it was trained on")
    words, told = ("excluded", "included", "unknown"), "whether facts of D_Held were among that"
    add("--heldout", choices=words, help=f"{told} (excluded for runs)")
    add("--note", metavar="WORDS")


def _add_bundles(parser: argparse.ArgumentParser) -> None:
    told = "bundles of the records; almanac is always at hand"
    parser.add_argument("--bundle", nargs="+", default=[], metavar="DIR", help=told)


def _record(args: argparse.Namespace) -> None:
    outputs.require_folder(args.output_path)
    declared = _declared(args, len(args.source))
    bundle = load_bundle(locate_bundle(args.bundle))
    if args.curve:
        sys.stdout.write(f"{record_curve(args.source, bundle, args.output_path, declared)}\n")
        return
    for source in args.source:
        path = make_record(source, bundle, args.output_path, declared, style=args.tasks)
        sys.stdout.write(f"{path}\n")


def _declared(args: argparse.Namespace, results: int) -> Declared:
    told = {key: getattr(args, key) for key in Declared.model_fields}
    told["method_args"] = parse_settings(args.method_args) if args.method_args else None
    if args.curve and args.tasks != TASK:
        raise InputError("A curve is asked as the protocol asks. Leave out --tasks or --curve.")
    if args.seed is not None and results > 1 and not args.curve:
        raise InputError("A seed is of one result. Record them one by one, each with its --seed.")
    return parse(Declared, told, "record")


def _submit(args: argparse.Namespace) -> int:
    outputs.require_folder(args.output_path)
    declared = _declared(args, len(args.checkpoint))
    bundle = load_bundle(locate_bundle(args.bundle))
    scoring = {name: getattr(args, name) for name in ("batch_size", "device", "descends")}
    with TemporaryDirectory() as scratch:
        before = Path(scratch)
        write_published(args.records.parent, args.against, before)
        given = (args.checkpoint, bundle, args.records, declared, args.output_path)
        with outputs.taken(args.output_path):
            written = submit(*given, curve=args.curve, style=args.tasks, **scoring)
        sys.stdout.write("".join(f"{path}\n" for path in written))
        code = _tell_findings(check(args.records, [], before), args.records)
        told = change(before / args.records.name, args.records, {bundle.sha256: bundle})
    sys.stdout.write(f"\n{diff_text(told)}\n")
    for line in next_steps(args.records.parent, written):
        note(line)
    return code


def _validate(args: argparse.Namespace) -> int:
    return _tell_findings(check(args.records, args.bundle, args.against), args.records, args.format)


def _tell_findings(findings: list[Finding], records: Path, style: str = "rich") -> int:
    """Tells what a check found; raises a UserError for errors, else returns the exit code."""
    told, count = (
        render_findings(findings, style, color=sys.stdout.isatty()),
        len(find_records(records)),
    )
    sys.stdout.write(f"{told}\n" if told else "")
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise InputError(f"{errors} errors in {count} records. Record the results again.")
    note(f"{count} records hold: every number follows from its outcomes.")
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
    found = change(args.before, args.after, bundles_at_hand(args.bundle))
    sys.stdout.write(f"{diff_text(found)}\n")


def _official(args: argparse.Namespace) -> None:
    if args.bundle:
        bundle = load_bundle(locate_bundle(args.bundle))
        path = make_official(bundle, args.bundles, args.version, args.dataset)
        sys.stdout.write(f"{path}\n")
        return
    named = official(args.bundles)
    for sha256, place in sources(args.bundles).items():
        sys.stdout.write(f"{named[sha256].name}\t{sha256[:12]}\t{place}\n")
