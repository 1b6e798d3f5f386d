"""`factual-forgetting interference`: conditions, their table, figures and the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, Bundle, load_bundle, locate_bundle
from factual_forgetting.config import parse, parse_seed
from factual_forgetting.errors import InputError
from factual_forgetting.mechanism.conditions import Condition, Settings, Taught
from factual_forgetting.mechanism.keys import Keys, Values
from factual_forgetting.protocol.recipe import load_protocol

_SUMMARY = "summary.json"
_RELATIONS = ("country", "P17")  # the paper's relation, as the almanac and Wikidata name it
_RIVAL_PASSES = 8


def add_parser(subparsers: Any) -> None:
    """Adds `interference`."""
    told = "why facts are forgotten: new facts with different keys"
    parser = subparsers.add_parser("interference", help=told)
    add = parser.add_argument
    told = "directory, or almanac (the default); several compare bases"
    add("--bundle", nargs="+", default=[checkpoint.ALMANAC], help=told)
    add("--relation", help="of the new facts; country or P17 if there is one")
    add("--keys", nargs="+", choices=get_args(Keys), default=["name", "identifier", "matched"])
    add("--values", nargs="+", choices=get_args(Values), default=["real"])
    add("--facts", nargs="+", type=int, default=[100, 1000])
    add("--methods", nargs="+", choices=get_args(Taught), default=["sft"])
    add("--seeds", nargs="+", type=parse_seed, default=[0])
    add("--protocol", default="almanac-v1", help="rate, batch and precision")
    add("--plasticity", type=float, default=0.9, help="where conditions are compared")
    add("--most_passes", type=int, default=40, help="training ends here in any case")
    add("--alone", action="store_true", help="mix no known facts in")
    add("--rivals", action="store_true", help="add the controls of behaviour cloning")
    add("--report", action="store_true", help="write report.md with all figures")
    told = "holds the finished conditions, all of which are shown, and at-P with what they show"
    add("--output_path", type=Path, default=Path("interference"), help=told)
    parser.set_defaults(run=_interference, resumes=True)


def _interference(args: argparse.Namespace) -> None:
    """Trains what isn't there yet, and shows all that is: several commands may fill one place."""
    from factual_forgetting.mechanism.findings import summarised
    from factual_forgetting.mechanism.interference import finished_conditions, run_condition
    from factual_forgetting.mechanism.interference_report import arms_table, draw_all, write_report

    folder = args.output_path / f"at-{args.plasticity:g}"
    begun = outputs.json_with()
    outputs.require_folder(folder, "*", begun=lambda there: begun(there / _SUMMARY))
    bundles = [load_bundle(locate_bundle(name)) for name in args.bundle]
    jobs = [(bundle, condition) for bundle in bundles for condition in _conditions(args, bundle)]
    relation, protocol = _relation(args.relation, bundles), load_protocol(args.protocol)
    given = {"relation": relation, "protocol": protocol}
    given |= {"plasticity": args.plasticity, "most_passes": args.most_passes}
    settings = parse(Settings, given, "interference")
    with tqdm(jobs, desc="interference", unit="condition") as shown:
        for bundle, condition in shown:
            run_condition(bundle, condition, settings, args.output_path, progress=False)
    results = finished_conditions(bundles, settings, args.output_path)
    found = summarised(results, {bundle.sha256: bundle for bundle in bundles}, args.plasticity)
    with outputs.taken(folder):
        files.write_json(folder / _SUMMARY, found)
        draw_all(found, folder)
        if args.report:
            write_report(found, bundles, settings, folder)
    sys.stdout.write(f"{arms_table(found['arms'], args.plasticity)}\n")


def _relation(asked: str | None, bundles: Sequence[Bundle]) -> str:
    there = {item.fact.relation for item in bundles[0].splits[HELDOUT]}
    found = asked or next((name for name in _RELATIONS if name in there), None)
    if found not in there:
        raise InputError(
            f"D_Held has no facts of the relation {found or 'of the paper'}. Give one of its own "
            f"with --relation: {', '.join(sorted(there)) or 'it has none'}."
        )
    return str(found)


def _conditions(args: argparse.Namespace, bundle: Bundle) -> list[Condition]:
    """Lays out the grid, and the rivals where asked for; seeds last, so that one comes whole."""
    made = []
    for seed in args.seeds:
        grid = product(args.values, args.facts, args.methods, args.keys)
        for values, facts, method, keys in grid:
            told = {"keys": keys, "values": values, "facts": facts, "method": method}
            mixed = not args.alone and keys != "known"
            made.append(parse(Condition, {**told, "seed": seed, "mixed": mixed}, "interference"))
        if args.rivals:
            made += _rivals(len(bundle.splits[KNOWN]), seed)
    return made


def _rivals(facts: int, seed: int) -> list[Condition]:
    """As many targets that the base doesn't give, with new associations and without."""
    shared: dict[str, Any] = {"facts": facts, "seed": seed, "passes": _RIVAL_PASSES}
    return [
        Condition(keys="name", **shared),
        Condition(keys="identifier", **shared),
        Condition(keys="name", values="abstention", **shared),
        Condition(keys="known", values="shuffled", mixed=False, **shared),
    ]
