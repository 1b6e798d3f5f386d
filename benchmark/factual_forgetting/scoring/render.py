"""Reports as text: tables in markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tabulate import tabulate

from factual_forgetting.bundle.manifest import HELDOUT, HELDOUT_OTHER, KNOWN, UNKNOWN
from factual_forgetting.scoring.anatomy import ANATOMY_RUNS, ERASED, FORMAT, SUPPRESSED
from factual_forgetting.scoring.report import TRANSITIONS, Report
from factual_forgetting.scoring.statistics import interval_text

_METRICS = {
    "task_learning": "task learning T",
    "plasticity": "plasticity P",
    "stability": "stability S",
    "stability_macro": "S, mean over relations",
    "stability_strict": "S, golds alone (strict)",
    "stability_other": "S, out of relation",
    "stability_majority": "S, majority answers",
    "stability_minority": "S, minority answers",
    "lost": "lost, of what the base has right",
    "gained": "gained, of what the base has wrong",
    "forgetting_from_base": "net forgetting, from the base",
    "forgetting_from_label": "forgetting, from the label",
    "abstention": "abstention on D_Held",
    "hallucination": "hallucination on D_Held",
    "intrusion": "wrong answers that are objects of D_Unk",
    "token_f1": "token F1 on D_Held",
}
_SPLITS = {KNOWN: "D_Known", UNKNOWN: "D_Unk", HELDOUT: "D_Held", HELDOUT_OTHER: "other relations"}
_KINDS = {
    ERASED: f"none of {ANATOMY_RUNS + 1} few-shot prompts brings it back",
    SUPPRESSED: f"some of {ANATOMY_RUNS} do, the one that the base was asked in doesn't",
    FORMAT: f"the one that the base was asked in does, or all {ANATOMY_RUNS}",
}
_MARKS = {
    "first_point": "reached before the first checkpoint",
    "coarse": "coarse: fewer than 8 checkpoints before P = .90",
}
_HASHED = ("bundle", "weights", "tokenizer", "prompts", "settings")
_MOST_SHOWN = 200
_table = partial(tabulate, tablefmt="github", disable_numparse=True)


def report_markdown(reports: Sequence[Report], control: Report | None = None) -> str:
    """Renders reports side by side: metrics, transitions, relations and notes."""
    named = list(zip(short_names([r.results.name for r in reports]), reports, strict=True))
    if control:
        named.append(("control (known only)", control))
    first = reports[0].summary
    metrics = [
        [label, *(_cell(key, report) for _, report in named)] for key, label in _METRICS.items()
    ]
    parts = [
        f"# {first['style']}, bundle {first['made_with']['bundle_sha256'][:12]}",
        "Shares of facts with 95 % intervals over facts within relations. Lost and gained compare "
        "with the base in the same prompt, fact by fact.",
        _table(metrics, ["metric", *(name for name, _ in named)]),
    ]
    for name, report in named:
        parts += [f"## {name}", *_details(report.summary)]
    return "\n\n".join(parts)


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns the shortest ends of paths that tell them apart, numbered where nothing does."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({index})" for index, part in enumerate(parts, start=1)]


def _cell(key: str, report: Report) -> str:
    value = report.summary["metrics"][key]
    if value is None and key in ("task_learning", "plasticity") and not report.trained:
        return "not trained"
    return f"{value:.3f}" if isinstance(value, float) else interval_text(value)


def _details(summary: Mapping[str, Any]) -> list[str]:
    splits = [
        [_SPLITS[split], *(counts[kind] for kind in TRANSITIONS)]
        for split, counts in summary["transitions"].items()
    ]
    relations = [
        [row["relation"], row["n"], f"{row['stability']:.3f}", *(row[k] for k in TRANSITIONS)]
        for row in summary["relations"]
    ]
    hashes = [
        f"- {name} sha256 {summary['made_with'][f'{name}_sha256'] or 'not recorded'}"
        for name in _HASHED
    ]
    return [
        summary["checkpoint"],
        _table(splits, ["split", *TRANSITIONS]),
        _table(relations, ["relation in D_Held", "facts", "S", *TRANSITIONS]),
        *(f"Note: {note}" for note in summary["notes"]),
        "\n".join(hashes),
    ]


def comparison_markdown(row: Mapping[str, Any]) -> str:
    """Renders McNemar's test of two checkpoints in a sentence."""
    first, second = short_names(row["checkpoints"])
    return (
        f"D_Held: {row['only_first_right']} facts that only {first} has right, "
        f"{row['only_second_right']} that only {second} has right; "
        f"exact McNemar p = {row['p_value']:.3g}"
    )


def curve_markdown(row: Mapping[str, Any]) -> str:
    """Renders a curve and S@P90."""
    points, crossing = row["points"], row["stability_at_p90"]
    told = "never reached by these checkpoints"
    if crossing:
        marks = "; ".join(text for key, text in _MARKS.items() if crossing[key])
        told = f"{crossing['stability']:.3f}" + (f" ({marks})" if marks else "")
    rows = [
        [name, *(f"{point[key]:.3f}" for key in ("task_learning", "plasticity", "stability"))]
        for name, point in zip(short_names([p["checkpoint"] for p in points]), points, strict=True)
    ]
    return _table(rows, ["checkpoint", "T", "P", "S"]) + f"\n\nS@P90: {told}"


def facts_markdown(reports: Sequence[Report], kind: str) -> str:
    """Lists the first checkpoint's facts of one kind of transition, with all answers to them."""
    chosen = reports[0].facts(kind)
    names = short_names([report.results.name for report in reports])
    rows = [
        [_SPLITS[row["split"]], row["relation"], row["question"], row["gold"]]
        + [_one_line(report.results.answers.get(row["id"], "")) for report in reports]
        for row in chosen[:_MOST_SHOWN]
    ]
    table = _table(rows, ["split", "relation", "question", "gold", *names])
    left = len(chosen) - len(rows)
    return f"{table}\n\n{left} more: --format json has all" if left else table


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def anatomy_markdown(row: Mapping[str, Any]) -> str:
    """Renders the anatomy of a checkpoint's losses."""
    head = f"Anatomy of {row['checkpoint']}: {row['lost']} facts of D_Held lost"
    if not row["lost"]:
        return head
    rows = [
        [
            kind,
            row["kinds"][kind],
            f"{gold['rank_scored']:g} / {gold['rank_fresh']:g}",
            f"{gold['probability_scored']:.3g} / {gold['probability_fresh']:.3g}",
        ]
        for kind, gold in row["gold"].items()
    ]
    headers = ["kind", "facts", "median rank of the gold, scored / few-shot", "its probability"]
    labels = ", ".join(f"{label} {count}" for label, count in row["labels"].items() if count)
    kinds = "; ".join(f"{kind}: {told}" for kind, told in _KINDS.items())
    return (
        f"{head}\n\n{_table(rows, headers)}\n\n{kinds}.\n\n"
        f"A few-shot prompt brings back {interval_text(row['brought_back'])} "
        f"(the base has {row['base_in_fresh']:.3f} of them right there). "
        f"Labels under the checkpoint itself: {labels}."
    )
