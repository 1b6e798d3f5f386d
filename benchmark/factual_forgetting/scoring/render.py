"""Reports as text: tables in markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from factual_forgetting.bundle.manifest import HELDOUT, HELDOUT_OTHER, KNOWN, UNKNOWN
from factual_forgetting.scoring.anatomy import ERASED, FORMAT, RUNS, SUPPRESSED
from factual_forgetting.scoring.report import Report
from factual_forgetting.scoring.statistics import interval_text
from factual_forgetting.scoring.transitions import TRANSITIONS

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
_SPLITS = {
    KNOWN: "D_Known",
    UNKNOWN: "D_Unk",
    HELDOUT: "D_Held",
    HELDOUT_OTHER: "other relations",
}
_KINDS = {
    ERASED: f"none of {RUNS + 1} few-shot prompts brings it back",
    SUPPRESSED: f"some of {RUNS} do, the one that the base was asked in doesn't",
    FORMAT: f"the one that the base was asked in does, or all {RUNS}",
}
_MOST_SHOWN = 200


def markdown(reports: Sequence[Report], control: Report | None = None) -> str:
    """Renders reports side by side: metrics, transitions, relations and notes."""
    columns = [*reports, *([control] if control else [])]
    names = [*_names(reports), *(["control (known only)"] if control else [])]
    rows = [[label, *(_cell(key, report) for report in columns)] for key, label in _METRICS.items()]
    parts = [_head(reports[0]), _table(["metric", *names], rows)]
    for name, report in zip(names, columns, strict=True):
        parts += [f"## {name}", report.summary["checkpoint"], _facts(report), _by_relation(report)]
        parts += [f"Note: {note}" for note in report.summary["notes"]]
        parts.append(_hashes(report.summary["made_with"]))
    return "\n\n".join(parts)


def _head(report: Report) -> str:
    summary = report.summary
    return (
        f"# {summary['style']}, bundle {summary['made_with']['bundle_sha256'][:12]}\n\n"
        "Shares of facts with 95 % intervals over facts within relations. Lost and gained compare "
        "with the base in the same prompt, fact by fact."
    )


def _names(reports: Sequence[Report]) -> list[str]:
    return _short([report.summary["checkpoint"] for report in reports])


def _short(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart, numbered where nothing does."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({index})" for index, part in enumerate(parts, start=1)]


def _cell(key: str, report: Report) -> str:
    value = report.summary["metrics"][key]
    if value is None:
        untrained = key in ("task_learning", "plasticity") and not report.trained
        return "not trained" if untrained else "-"
    return f"{value:.3f}" if isinstance(value, float) else interval_text(value)


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _facts(report: Report) -> str:
    counts = report.summary["transitions"]
    rows = [[_SPLITS[split], *(counts[split][kind] for kind in TRANSITIONS)] for split in counts]
    return _table(["split", *TRANSITIONS], rows)


def _by_relation(report: Report) -> str:
    rows = [
        [row["relation"], row["n"], f"{row['stability']:.3f}", *(row[k] for k in TRANSITIONS)]
        for row in report.summary["relations"]
    ]
    return _table(["relation in D_Held", "facts", "S", *TRANSITIONS], rows)


def _hashes(made_with: Mapping[str, Any]) -> str:
    named = ("bundle", "weights", "tokenizer", "prompts", "settings")
    found = {name: made_with[f"{name}_sha256"] for name in named}
    return "\n".join(f"- {name} sha256 {value or 'not recorded'}" for name, value in found.items())


def comparison(row: Mapping[str, Any]) -> str:
    """Renders McNemar's test of two checkpoints in a sentence."""
    first, second = _short(row["checkpoints"])
    return (
        f"D_Held: {row['only_first_right']} facts that only {first} has right, "
        f"{row['only_second_right']} that only {second} has right; "
        f"exact McNemar p = {row['p_value']:.3g}"
    )


def curve(row: Mapping[str, Any]) -> str:
    """Renders a curve and S@P90."""
    keys = ("task_learning", "plasticity", "stability")
    points = row["points"]
    rows = [
        [name, *(f"{point[key]:.3f}" for key in keys)]
        for name, point in zip(_short([p["checkpoint"] for p in points]), points, strict=True)
    ]
    crossing = row["stability_at_p90"]
    if crossing is None:
        told = "S@P90: never reached by these checkpoints"
    else:
        marks = [
            text
            for key, text in (
                ("first_point", "reached before the first checkpoint"),
                ("coarse", "coarse: fewer than 8 checkpoints before P = .90"),
            )
            if crossing[key]
        ]
        told = f"S@P90: {crossing['stability']:.3f}" + (f" ({'; '.join(marks)})" if marks else "")
    return _table(["checkpoint", "T", "P", "S"], rows) + f"\n\n{told}"


def facts(reports: Sequence[Report], kind: str) -> str:
    """Lists the facts of one kind of transition, the answers of all checkpoints side by side.

    Args:
        reports: Their first one decides which facts are shown.
        kind: One of `TRANSITIONS`.
    """
    chosen = [change for change in reports[0].transitions if change.kind == kind]
    rows = [
        [_SPLITS[change.split], change.item.fact.relation, change.item.fact.question]
        + [change.item.fact.answers[0]]
        + [_one_line(report.results.answers.get(change.item.fact.id, "")) for report in reports]
        for change in chosen[:_MOST_SHOWN]
    ]
    table = _table(["split", "relation", "question", "gold", *_names(reports)], rows)
    left = len(chosen) - len(rows)
    return f"{table}\n\n{left} more: --format json has all" if left else table


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def anatomy(row: Mapping[str, Any]) -> str:
    """Renders the anatomy of a checkpoint's losses."""
    head = f"Anatomy of {row['checkpoint']}: {row['lost']} facts of D_Held lost"
    if not row["lost"]:
        return head
    table = [
        [
            kind,
            row["kinds"][kind],
            f"{gold['rank_scored']:g} / {gold['rank_fresh']:g}",
            f"{gold['probability_scored']:.3g} / {gold['probability_fresh']:.3g}",
        ]
        for kind, gold in row["gold"].items()
    ]
    labels = ", ".join(f"{label} {count}" for label, count in row["labels"].items() if count)
    headers = ["kind", "facts", "median rank of the gold, scored / few-shot", "its probability"]
    kinds = "; ".join(f"{kind}: {told}" for kind, told in _KINDS.items())
    return (
        f"{head}\n\n{_table(headers, table)}\n\n{kinds}.\n\n"
        f"A few-shot prompt brings back {interval_text(row['brought_back'])} "
        f"(the base has {row['base_in_fresh']:.3f} of them right there). "
        f"Labels under the checkpoint itself: {labels}."
    )
