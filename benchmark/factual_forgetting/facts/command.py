"""`factual-forgetting facts`, and the arguments of every command that reads facts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factual_forgetting import files, outputs
from factual_forgetting.config import parse, parse_seed
from factual_forgetting.facts.account import account, plot_account
from factual_forgetting.facts.cleaning import RULES, Cleaned
from factual_forgetting.facts.rows import FIELDS
from factual_forgetting.facts.sources import (
    NAMED_SOURCES,
    SourceOptions,
    clean_source,
    versions_of,
)
from factual_forgetting.facts.store import StoredFacts
from factual_forgetting.terminal import table, tell

_SOURCES = (
    f"{', '.join(NAMED_SOURCES)}, popqa:FILE, datasets:ID[:CONFIG][@REVISION], a folder in "
    "EntityQuestions' layout, or a .jsonl, .json, .csv or .tsv file"
)

_ACCOUNT = "account.json"
_WRITTEN = ("facts.jsonl", "dropped.json", _ACCOUNT, "account.png")


def add_source_arguments(parser: argparse.ArgumentParser, name: str = "--facts") -> None:
    """Adds the arguments that choose a source and its cleaning.

    The `name` is `facts` in a command whose only operand is the source.
    """
    parser.add_argument(name, metavar="SOURCE", default="almanac", help=_SOURCES)
    parser.add_argument("--relations", nargs="+", default=(), help="relations to keep")
    parser.add_argument("--limit", type=int, help="facts of each relation and split at most")
    parser.add_argument(
        "--min_popularity", type=int, metavar="N", help="least popularity of facts that have one"
    )
    parser.add_argument("--seed", type=parse_seed, default=0, help="which facts a limit keeps")
    usual = ", ".join(rule.name for rule in RULES if rule.on and not rule.fixed)
    optional = ", ".join(rule.name for rule in RULES if not rule.on)
    for flag, effect in (("--keep", f"turn off: {usual}"), ("--drop", f"turn on: {optional}")):
        parser.add_argument(flag, nargs="+", default=(), metavar="RULE", help=effect)
    parser.add_argument(
        "--aliases", type=Path, metavar="FILE",
        help="JSON, relation or * to lists of names of one thing; joins the built-in table",
    )  # fmt: skip
    parser.add_argument(
        "--column", dest="columns", nargs="+", default=(), type=_column, metavar="FIELD=NAME",
        help=f"column of a field ({', '.join(FIELDS)}); FIELD==TEXT sets a constant",
    )  # fmt: skip


def _column(text: str) -> tuple[str, str]:
    field, _, column = text.partition("=")
    if not (field and column):
        raise argparse.ArgumentTypeError(f"'{text}' is not FIELD=NAME")
    return field, column


def _options(args: argparse.Namespace) -> SourceOptions:
    values = {key: getattr(args, key) for key in SourceOptions.model_fields}
    return parse(SourceOptions, {**values, "columns": dict(args.columns)}, "command line")


def facts_from_arguments(args: argparse.Namespace) -> tuple[StoredFacts, dict[str, Any]]:
    """Finds the cleaned facts that the arguments of `add_source_arguments` choose.

    Returns the facts as a stream that can be read again, and their source: the options, the
    versions of packages that it is read from, and how many rows each rule dropped.

    Raises:
        UserError: If a value is out of range or a field is unknown, and as `clean_source` does.
    """
    options = _options(args)
    cleaned = clean_source(options)
    dropped = {rule: len(rows) for rule, rows in cleaned.dropped.items() if rows}
    # The name of a file is where it lies on one machine; its hash is in the manifest.
    told = {**options.told(), "facts": Path(options.facts).name}
    versions = versions_of(options.facts)
    pinned = {"versions": versions} if versions else {}
    return cleaned.facts, {**told, **pinned, "dropped": dropped}


def add_parser(subparsers: Any) -> None:
    """Adds `facts` to the subcommands of a parser."""
    parser = subparsers.add_parser("facts", help="clean a source of facts and account for it")
    add_source_arguments(parser, "facts")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--output_path", type=Path, metavar="DIR",
        help="write facts.jsonl, account.json, dropped.json and account.png there",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    options = _options(args)
    if args.output_path:
        outputs.require_folder(args.output_path, *_WRITTEN, begun=_wrote_there)
    cleaned = clean_source(options, may_be_empty=True)
    told = {"source": options.told(), **account(cleaned)}
    if args.output_path:
        with outputs.taken(args.output_path):
            _write(cleaned, told, args.output_path)
    tell(_table(told) if args.format == "table" else files.dumps(told, 2))


def _write(cleaned: Cleaned, told: dict[str, Any], output: Path) -> None:
    dropped = {rule: sorted({row.id for row in rows}) for rule, rows in cleaned.dropped.items()}
    # First, since it tells that the others are ours.
    files.write_json(output / _ACCOUNT, told)
    files.write_jsonl(output / "facts.jsonl", (fact.row() for fact in cleaned.facts))
    files.write_json(output / "dropped.json", dropped)
    plot_account(told, output / "account.png")


def _wrote_there(folder: Path) -> bool:
    return outputs.json_with("source", "facts", "rows", "relations", "rules")(folder / _ACCOUNT)


def _table(told: dict[str, Any]) -> str:
    """Lays out an account for a terminal: a line a relation, then the rules that dropped rows."""
    rules = [rule for rule, count in told["rules"].items() if count]
    head = ["relation", "read", "kept", *map(str, range(1, len(rules) + 1))]
    head += ["answers", "majority answer", "share", "length", "in subject"]
    measured = ("answers", "majority", "majority_share", "characters")
    lines = [
        [name, row["read"]["facts"], row["kept"]["facts"]]
        + [row["dropped"][rule] for rule in rules]
        + [row["kept"][measure] for measure in measured]
        + [row["read"]["in_subject"]]
        for name, row in told["relations"].items()
    ]
    reasons = {rule.name: rule.reason for rule in RULES}
    reasons |= {"limit": "over --limit", "min_popularity": "under --min_popularity"}
    notes = [
        f"{number}  {rule}: {told['rules'][rule]} rows; {reasons[rule]}"
        for number, rule in enumerate(rules, start=1)
    ]
    told_rows = table(lines, head, style="simple", numbers=True)
    total = f"{told['facts']} facts of {told['rows']} rows; rows dropped or merged by rule:"
    legend = "Answers, share and length are of kept facts, 'in subject' of rows read."
    return "\n".join([told_rows, "", total, *notes, legend])
