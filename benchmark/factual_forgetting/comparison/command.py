"""`factual-forgetting compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.comparison.comparing import (
    PAGE,
    PER_FACT,
    SUMMARY,
    compare_models,
    default_facts,
    work_folder,
)
from factual_forgetting.comparison.contestants import read_contestants
from factual_forgetting.comparison.interview import Opening
from factual_forgetting.comparison.outcomes import FATES
from factual_forgetting.comparison.questions import (
    CHATTING,
    FEW_SHOT,
    CompareConfig,
    read_questions,
)
from factual_forgetting.comparison.result import Comparison
from factual_forgetting.comparison.telling import breaches, comparison_text
from factual_forgetting.config import parse, parse_batch_size, parse_seed
from factual_forgetting.engines.opening import ENGINES
from factual_forgetting.facts.command import add_source_arguments, facts_from_arguments
from factual_forgetting.facts.rows import RELATION_OF_ALL, lacks_relations
from factual_forgetting.facts.store import StoredFacts
from factual_forgetting.scoring.threshold import Threshold
from factual_forgetting.slick.labelling import ZERO_SHOT
from factual_forgetting.terminal import note, tell

FAILED = 3
_LIMITED = ("lost", "net", "gained", "kept", "stability")
_FORMS = {"table": "simple", "markdown": "github"}


def add_parser(subparsers: Any) -> None:
    """Adds `compare`."""
    parser = subparsers.add_parser(
        "compare", help="what checkpoints forgot, compared with their base: no bundle, no labels"
    )
    parser.add_argument("base", metavar="BASE", help="directory, Hub name, or key=value,key=value")
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", nargs="+",
        help="the same; base,peft=DIR is the base with an adapter on it",
    )  # fmt: skip
    add_source_arguments(parser)
    parser.set_defaults(facts=None, run=_run)
    model = parser.add_argument_group("the models")
    model.add_argument("--model", default="hf", help="model class of lm-eval (hf)")
    model.add_argument("--model_args", default="", help="arguments that all have in common")
    model.add_argument("--engine", choices=ENGINES, default="auto")
    model.add_argument(
        "--batch_size", type=parse_batch_size, default="auto", help="a number or auto"
    )
    model.add_argument("--device", default=None)
    asked = parser.add_argument_group("the questions").add_mutually_exclusive_group()
    asked.add_argument(
        "--zero_shot", dest="style", action="store_const", const=ZERO_SHOT, default=FEW_SHOT,
        help="compare in the question alone; the base's known facts are found few-shot",
    )  # fmt: skip
    asked.add_argument(
        "--chat", dest="style", action="store_const", const=CHATTING,
        help="ask in each model's chat template",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="prompts that a known fact passes (5)")
    parser.add_argument("--shots", type=int, default=3, help="exemplars in each (3)")
    parser.add_argument("--exemplar_seed", type=parse_seed, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="stop when the net loss is known within 3 points"
    )
    told = parser.add_argument_group("the report")
    told.add_argument("--format", choices=tuple(_FORMS), default="table")
    told.add_argument("--show", choices=FATES, help="list these facts with all answers")
    told.add_argument(
        "--output_path", type=Path, metavar="DIR",
        help="keep answers there, to resume or to add a checkpoint; compare.json, facts.parquet "
        "and compare.html too",
    )  # fmt: skip
    told.add_argument(
        "--fail_if", nargs="+", default=(), metavar="NAME>NUMBER",
        help=f"exit {FAILED} if the whole interval is past the number, as in 'lost>0.05'",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    limits = [Threshold.parse(text, _LIMITED) for text in args.fail_if]
    values = {name: getattr(args, name) for name in ("style", "runs", "shots")}
    settings = parse(CompareConfig, {**values, "seed": args.exemplar_seed}, "compare")
    models = read_contestants(args.base, args.checkpoints, args.model, args.model_args)
    facts = _facts(args, args.facts) if args.facts else default_facts(lambda n: _facts(args, n))
    questions = read_questions(facts, settings)
    opening = Opening(args.engine, args.batch_size, args.device)
    with work_folder(args.output_path) as folder:
        comparison = compare_models(models, questions, opening, folder, quick=args.quick)
        if args.output_path:
            _write(comparison, folder)
    found, form = comparison.summary, _FORMS[args.format]
    tell(comparison_text(found, comparison.outcomes, form, args.show))
    broken = [told for limit in limits for told in breaches(limit, found)]
    for told in broken:
        note(f"failed: {told}")
    return FAILED if broken else 0


def _facts(args: argparse.Namespace, source: str) -> StoredFacts:
    columns = dict(args.columns)
    if "relation" not in columns and lacks_relations(source):
        columns["relation"] = f"={RELATION_OF_ALL}"
        note(f"{source} has no column relation: its facts are one group")
    given = argparse.Namespace(**{**vars(args), "facts": source, "columns": columns.items()})
    return facts_from_arguments(given)[0]


def _write(comparison: Comparison, output: Path) -> None:
    files.write_atomic(output / PAGE, comparison.page().encode())
    with files.atomic(output / PER_FACT) as stream:
        comparison.to_pandas().to_parquet(stream, index=False)
    files.write_json(output / SUMMARY, comparison.summary)
