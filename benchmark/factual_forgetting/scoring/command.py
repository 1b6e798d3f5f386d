"""`factual-forgetting score | report | tasks-path | register | unregister | env`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from factual_forgetting import files, outputs, tasks
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.config import parse_batch_size
from factual_forgetting.environment import environment
from factual_forgetting.errors import InputError
from factual_forgetting.scoring import render
from factual_forgetting.scoring.anatomy import anatomy
from factual_forgetting.scoring.report import (
    TRANSITIONS,
    compare_two,
    in_order,
    make_curve,
    make_report,
)
from factual_forgetting.scoring.results import find_results, read_results
from factual_forgetting.scoring.score import run_lm_eval
from factual_forgetting.scoring.styles import STYLES, TASK
from factual_forgetting.terminal import note, tell

_MOST = 2**63
_ASSUMED = (
    "Note: checkpoints of one run are taken to have trained on D_train. If these have not, add "
    "--no-trained."
)
_REFUSED = {
    "cache_requests": "its keys are the task's name, not the bundle, so that one bundle's "
    "questions would be judged by another's answers",
    "use_cache": "its keys leave out the model, so that one checkpoint's answers would be "
    "taken for another's",
}


def add_parser(subparsers: Any) -> None:
    """Adds `score`, `report` and the commands that tell lm-eval where our tasks are."""

    def add(name: str, what: str, act: Callable[[], object], told: str = "{}") -> None:
        parser = subparsers.add_parser(name, help=what)
        parser.set_defaults(run=lambda _: print(told.format(act())))

    _add_score(subparsers)
    _add_report(subparsers)
    add("tasks-path", "print the directory to give to lm_eval --include_path", tasks.tasks_dir)
    bare = "make the bare `lm_eval --tasks factual_forgetting` work"
    add("register", bare, tasks.register, "registered in {}")
    add("unregister", "undo register", tasks.unregister, "removed {}")
    add("env", "print versions and hardware, to paste into a report", _environment)


def _add_score(subparsers: Any) -> None:
    score = subparsers.add_parser("score", help="score checkpoints through lm-eval")
    score.add_argument("--model", default="hf", help="model class of lm-eval (hf)")
    score.add_argument(
        "--model_args",
        nargs="+",
        required=True,
        metavar="ARGS",
        help="pretrained=DIR,… or a directory, one or several; a Trainer's checkpoints of one run "
        "give a curve",
    )
    _add_common(score)
    score.add_argument(
        "--tasks",
        nargs="+",
        choices=tuple(STYLES),
        default=(TASK,),
        help="the protocol's prompt (the default), few-shot, or a chat template",
    )
    score.add_argument("--batch_size", type=parse_batch_size, default="128")
    score.add_argument("--limit", type=_limit, help="to try out; gives no report")
    score.add_argument(
        "--descends",
        action="store_true",
        help="declare that the checkpoints descend from the bundle's base, whatever their shape",
    )
    score.add_argument("--output_path", type=Path, required=True)
    for name in _REFUSED:
        score.add_argument(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    score.set_defaults(run=_score, control=None, show=None)


def _limit(text: str) -> float:
    """Parses lm-eval's: a share of the questions below 1, or their number."""
    try:
        limit = float(text)
    except ValueError:
        limit = 0
    if not (0 < limit < 1 or (1 <= limit < _MOST and limit.is_integer())):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a share below 1 nor a number from 1")
    return limit


def _add_report(subparsers: Any) -> None:
    report = subparsers.add_parser("report", help="what checkpoints kept, lost and learned")
    report.add_argument("results", nargs="+", type=Path, help="what score or lm_eval wrote")
    _add_common(report)
    report.add_argument("--tasks", choices=tuple(STYLES), default=TASK)
    report.add_argument(
        "--control", type=Path, metavar="RESULTS", help="of a checkpoint trained on D_Known alone"
    )
    report.add_argument("--show", choices=TRANSITIONS, help="list these facts with all answers")
    report.add_argument("--format", choices=("markdown", "json"), default="markdown")
    report.set_defaults(run=_report)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        default="almanac",
        help="directory, almanac (the default), or a dataset on the Hub as name@commit",
    )
    parser.add_argument(
        "--trained",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the checkpoints trained on D_train (known by itself for runs of finetune; "
        "checkpoints of one run are taken to have)",
    )
    parser.add_argument(
        "--curve",
        action="store_true",
        help="these are checkpoints of one run, in the order of the numbers that their names end "
        "in, or as given (known by itself for a Trainer's)",
    )
    parser.add_argument(
        "--anatomy",
        action="store_true",
        help="ask lost facts again: erased, suppressed, or only the format broke?",
    )
    parser.add_argument("--device")


def _environment() -> str:
    return files.dumps(environment(), indent=2)


_is_report = outputs.json_with("reports")


def _score(args: argparse.Namespace) -> None:
    for name, reason in _REFUSED.items():
        if getattr(args, name) is not None:
            raise InputError(f"--{name} is refused: {reason}. Leave it out.")
    outputs.require_folder(args.output_path)
    for style in args.tasks:
        outputs.require_file(args.output_path / f"report_{style}.json", _is_report)
    bundle = load_bundle(locate_bundle(args.bundle))
    with outputs.taken(args.output_path):
        _score_all(args, bundle)


def _score_all(args: argparse.Namespace, bundle: Bundle) -> None:
    given = ("tasks", "batch_size", "device", "limit", "descends")
    settings = {name: getattr(args, name) for name in given}
    written = []
    for model_args in args.model_args:
        written.append(run_lm_eval(bundle, args.model, model_args, args.output_path, **settings))
        note(f"results: {written[-1]}")
    if args.limit is not None:
        note("No report: --limit leaves facts out.")
        return
    for style in args.tasks:
        told, content = _tell(bundle, written, style, args)
        path = args.output_path / f"report_{style}.json"
        files.write_json(path, content)
        note(f"report: {path}")
        tell(f"{told}\n")


def _report(args: argparse.Namespace) -> None:
    bundle = load_bundle(locate_bundle(args.bundle))
    told, content = _tell(bundle, find_results(args.results), args.tasks, args)
    tell(files.dumps(content, indent=2) if args.format == "json" else told)


def _tell(
    bundle: Bundle, paths: Sequence[Path], style: str, args: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Returns a report on some results as markdown and as JSON."""
    results = [read_results(path, bundle, style) for path in paths]
    if args.curve and (args.trained is False or len(results) < 2):
        raise InputError(
            "A curve is of two or more checkpoints of a run that trained on D_train. Leave out "
            "--curve, or give all of them and leave out --no-trained."
        )
    ordered = None if args.trained is False else in_order(results, declared=args.curve)
    trained = True if ordered else args.trained
    reports = [make_report(bundle, found, trained=trained) for found in ordered or results]
    content: dict[str, Any] = {"reports": [report.summary for report in reports]}
    control = None
    if args.control:
        compared = read_results(args.control, bundle, style)
        control = make_report(bundle, compared, trained=args.trained)
        content["control"] = control.summary
    parts = [render.report_markdown(reports, control)]
    if ordered:
        content["curve"] = make_curve(bundle, reports)
        parts.append(render.curve_markdown(content["curve"]))
        if args.trained is None:
            parts.append(_ASSUMED)
    if len(reports) == 2 and all(report.summary["metrics"]["stability"] for report in reports):
        content["comparison"] = compare_two(reports[0], reports[1], bundle)
        parts.append(render.comparison_markdown(content["comparison"]))
    if args.anatomy:
        content["anatomy"] = [anatomy(bundle, report, device=args.device) for report in reports]
        parts += map(render.anatomy_markdown, content["anatomy"])
    if args.show:
        content["facts"] = [report.facts(args.show) for report in reports]
        parts.append(render.facts_markdown(reports, args.show))
    return "\n\n".join(parts), content
