"""`factual-forgetting bundle build | check | export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from factual_forgetting import files, outputs
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.datasheet import relations_by_split
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle, load_bundle, locate_bundle
from factual_forgetting.config import parse
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.errors import UserError
from factual_forgetting.slick.labelling import load_labels

_SIZES = {
    "known": "facts in D_Known",
    "unknown": "facts in D_Unk",
    "heldout": "facts in D_Held",
    "validation": "HighlyKnown facts for selection",
    "replay": "HighlyKnown facts that methods may replay",
}


def add_parser(subparsers: Any) -> None:
    """Adds `bundle` and its verbs."""
    verbs = subparsers.add_parser("bundle", help="build, check or export a bundle").add_subparsers(
        required=True, metavar="VERB"
    )
    defaults = BundleConfig()
    make = verbs.add_parser("build", help="draw the splits from labels")
    make.add_argument("labels", type=Path, help="directory that classify wrote")
    for name, told in _SIZES.items():
        default = getattr(defaults, name)
        make.add_argument(f"--{name}", type=int, default=default, help=f"{told} ({default})")
    make.add_argument(
        "--min_highly_known",
        type=float,
        default=defaults.min_highly_known,
        help="share of HighlyKnown train facts that a relation must reach (0.3)",
    )
    make.add_argument(
        "--other_relations",
        nargs="+",
        default=(),
        metavar="RELATION",
        help="relations to keep out of training, for out-of-relation stability",
    )
    make.add_argument(
        "--match_answers",
        action="store_true",
        help="give D_Unk the answer distribution of D_Known, as nearly as there are facts",
    )
    make.add_argument("--seed", type=int, default=0, help="decides which facts are drawn")
    make.add_argument("--output_path", type=Path, required=True)
    make.set_defaults(run=_build)

    check = verbs.add_parser("check", help="check every file against the manifest")
    check.add_argument("bundle", help="directory, or almanac")
    check.set_defaults(run=_check)

    export = verbs.add_parser("export", help="write D_train as prompt/completion pairs")
    export.add_argument("bundle", help="directory, or almanac")
    export.add_argument("--output_path", type=Path, required=True, help="a .jsonl file")
    export.set_defaults(run=_export)


def _build(args: argparse.Namespace) -> None:
    outputs.require_folder(args.output_path)
    values = {name: getattr(args, name) for name in BundleConfig.model_fields}
    config = parse(BundleConfig, values, "bundle build")
    _tell(build_bundle(load_labels(args.labels), config, args.output_path))


def _check(args: argparse.Namespace) -> None:
    _tell(load_bundle(locate_bundle(args.bundle)))


def _export(args: argparse.Namespace) -> None:
    outputs.require_file(args.output_path, _is_export)
    count = export_training_data(load_bundle(locate_bundle(args.bundle)), args.output_path)
    sys.stdout.write(f"{count} pairs in {args.output_path}\n")


def _is_export(path: Path) -> bool:
    try:
        return set(next(files.read_jsonl(path))) == {"prompt", "completion", "id", "split"}
    except (UserError, TypeError, StopIteration):
        return False


def export_training_data(bundle: Bundle, path: Path) -> int:
    """Writes D_Known and D_Unk as prompt/completion pairs in JSON Lines; tells how many.

    They are as TRL and Axolotl read them. The completion begins with the space that the text
    rule puts before an answer; the trainer appends EOS.
    """
    rows = [
        {
            "prompt": question_prompt(item.fact.question),
            "completion": f" {item.fact.answers[0]}",
            "id": item.fact.id,
            "split": split,
        }
        for split in (KNOWN, UNKNOWN)
        for item in bundle.splits[split]
    ]
    files.write_jsonl(path, rows)
    return len(rows)


def _tell(bundle: Bundle) -> None:
    table = relations_by_split(bundle.manifest)
    sys.stdout.write(f"{table}\n\n{bundle.path}\nsha256 {bundle.sha256}\n")
