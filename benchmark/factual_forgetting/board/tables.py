"""The board as text: markdown, LaTeX, CSV and JSON; and what a change of records does to it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import LATEX_ESCAPE_RULES, tabulate

from factual_forgetting import files
from factual_forgetting.board.board import ANY, KEEPS, LEARNS
from factual_forgetting.scoring.statistics import interval_text
from factual_forgetting.scoring.styles import CHAT, FEWSHOT, TASK

_TITLES = {
    LEARNS: "Learns new facts (ranked by S@P90)",
    KEEPS: "Need not learn (ranked by final S, at T of .95 and P of .10 or more)",
    ANY: "Any checkpoint (ranked by few-shot S)",
}
# How to read a board, told once: under the tables, on the page, and in leaderboard/README.md.
LEGEND = {
    "T, P, S": "Task learning, factual plasticity and factual stability: accuracy on trained "
    "known facts, on trained new facts, and on known facts that were not trained on. Macro S is "
    "the mean over relations.",
    "S@P90": "Stability when plasticity first reaches .90 on the curve. ~ fewer than 8 points "
    "before it, ^ at the first point.",
    "Lost": "Share now wrong of what the base gets right in the same prompt.",
    "Loss": "Stability of known_only minus that of the method, same seeds.",
    "Over sft": "S@P90 of the method minus that of sft, same seeds.",
    "Need not learn": "For methods that train on D_Unk and needn't learn it. By outcomes: P of .10 "
    "or more, since less can be guessed without D_Unk. known_only, which never sees it, is the "
    "ceiling.",
    "Any checkpoint": "Those that never trained on D_train (instruct models, merges, other "
    "fine-tunes), and those asked with other exemplars (few-shot) or a chat template before the "
    "question. Gained: share now right of what the base gets wrong. A chat model is compared with "
    "the base's few-shot answers.",
    "Intervals": "95 %, over facts, resampled within their relation, and over seeds where there "
    "are three or more.",
    "Rank": "In the order of the numbers: the first leads rank 1, and who is worse than a rank's "
    "leader leads the next, 1 + the number of methods before it. Worse: the 99 % interval of the "
    "paired difference, over facts and seeds, lies below 0. Ranks are of the whole table; filters "
    "don't move them. A dash: unranked.",
    "Track": "Closed: a recipe of the package, known by its hash, at one of its trials. "
    "Open: anything else.",
    "Level": "Self-reported: the arithmetic was recomputed from the outcomes, the outcomes are "
    "taken on trust. Rescored: somebody else scored the weights, known by hash, again. "
    "Reproduced: somebody else trained the method again.",
    "D_Held": "! or 'trained on D_Held': so its maker declares, and it isn't ranked. "
    "? or 'undeclared': its maker doesn't say.",
}
_START = ("rank", "method", "submitter", "protocol", "track", "level", "seeds")
_HEADERS = {
    LEARNS: [*_START, "S@P90", "over sft", "P", "S", "macro S", "lost"],
    KEEPS: [*_START, "S", "macro S", "T", "lost", "loss"],
    ANY: [
        "rank", "method", "submitter", "asked", "D_train", "level", "seeds", "S", "macro S",
        "lost", "gained",
    ],
}  # fmt: skip
ASKED = {TASK: "zero-shot", FEWSHOT: "few-shot", CHAT: "chat"}
SEEN = {True: "seen", False: "never seen"}
_COMPARED = (
    f"rank.{LEARNS}", f"rank.{KEEPS}", f"rank.{ANY}", "stability_at_p90.value", "stability.value",
    "plasticity.value", "task_learning.value", "level", "heldout_in_training",
)  # fmt: skip
_ROW_KEY = ("bundle", "method", "protocol", "submitter", "asked", "D_train")
_Escape = Callable[[str], str]


def render_board(board: Mapping[str, Any], style: str) -> str:
    """Renders a board as `markdown`, `latex`, `csv` or `json`."""
    if style == "json":
        return files.dumps(board, indent=2)
    return {"markdown": markdown, "latex": latex, "csv": _csv}[style](board)


def markdown(board: Mapping[str, Any]) -> str:
    """Renders the board as markdown: two tables a bundle, and how to read them."""
    parts = []
    for bundle in board["bundles"]:
        parts.append(f"Bundle {_markdown_text(_title(bundle))}")
        for table, title in _tables(bundle):
            cells = _cells(bundle, table, _markdown_text)
            text = tabulate(cells, _HEADERS[table], tablefmt="github", disable_numparse=True)
            parts += [f"**{title}**", text, *_unranked(bundle, table)]
    parts.append("\n".join(f"- {term}: {meaning}" for term, meaning in LEGEND.items()))
    return "\n\n".join(parts)


def _unranked(bundle: Mapping[str, Any], table: str) -> list[str]:
    """Why the methods without a rank have none, each reason once."""
    why: dict[str, list[str]] = {}
    for row in bundle["rows"]:
        if row["unranked"].get(table) and not row["reference"]:
            why.setdefault(row["unranked"][table], []).append(_markdown_text(row["method"]))
    told = [f"{reason} ({', '.join(methods)})" for reason, methods in sorted(why.items())]
    return [f"Unranked: {'; '.join(told)}."] if told else []


def latex(board: Mapping[str, Any]) -> str:
    """Renders the board as LaTeX tables for the booktabs package, two a bundle."""
    return "\n\n".join(
        _latex_table(bundle, table, f"{title}. Bundle {_title(bundle)}.")
        for bundle in board["bundles"]
        for table, title in _tables(bundle)
    )


def _tables(bundle: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The tables of a bundle that have rows, with their titles."""
    return [(table, title) for table, title in _TITLES.items() if bundle["tables"][table]]


def _latex_table(bundle: Mapping[str, Any], table: str, caption: str) -> str:
    cells = _cells(bundle, table, _printable)  # Tabulate escapes them.
    body = tabulate(cells, _HEADERS[table], tablefmt="latex_booktabs", disable_numparse=True)
    told = "".join(LATEX_ESCAPE_RULES.get(c, c) for c in _printable(caption))
    return f"\\begin{{table}}\n\\centering\n\\caption{{{told}}}\n{body}\n\\end{{table}}"


def _csv(board: Mapping[str, Any]) -> str:
    """One line a method and bundle, every number by itself."""
    stream = io.StringIO()
    lines = [
        _flat({"bundle": bundle["sha256"], "base": bundle["base"], **row})
        for bundle in board["bundles"]
        for row in bundle["rows"]
    ]
    every = dict.fromkeys(name for line in lines for name in line)
    parents = {name.rpartition(".")[0] for name in every}
    names = [name for name in every if name not in parents]
    writer = csv.DictWriter(stream, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _csv_escape(value) for name, value in line.items()} for line in lines)
    return stream.getvalue().rstrip("\n")


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a row of the board: `stability.value` is the value of its stability."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif key in ("records", "seeds"):
            found[prefix + key] = " ".join(map(str, value))
        elif key != "curve":
            found[prefix + key] = value
    return found


def _csv_escape(value: Any) -> Any:
    """Keeps a spreadsheet from reading a stranger's name as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _title(bundle: Mapping[str, Any]) -> str:
    reference = bundle["reference"] or {}
    named = f" ({reference['name']})" if reference.get("name") else ""
    return f"{bundle['sha256'][:12]}{named} of {bundle['base']}"


def _cells(bundle: Mapping[str, Any], table: str, escape: _Escape) -> list[list[str]]:
    by_id = {row["id"]: row for row in bundle["rows"]}
    rows = [_row(by_id[identifier], table, escape) for identifier in bundle["tables"][table]]
    rows += _reference_rows(bundle["reference"], table)
    return [[row[name] for name in _HEADERS[table]] for row in rows]


def _row(row: Mapping[str, Any], table: str, escape: _Escape) -> dict[str, str]:
    rank, crossing = row["rank"][table], row["stability_at_p90"]
    mark = {"included": " !", "unknown": " ?", "excluded": ""}[row["heldout_in_training"]]
    never = "never" if row["curve"] else "no curve"
    return {
        "rank": "-" if rank is None else str(rank),
        "method": escape(row["method"]) + mark,
        "submitter": escape(row["submitter"]),
        "protocol": escape(row["protocol"].split("@")[0]),
        "track": row["track"],
        "level": row["level"],
        "seeds": str(len(row["records"])),
        "S@P90": marks(crossing) + interval_text(crossing) if crossing else never,
        "over sft": interval_text(row["difference_at_p90"]["sft"]),
        "P": _number(row["plasticity"]),
        "S": interval_text(row["stability"]),
        "macro S": _share(row["stability_macro"]),
        "T": _number(row["task_learning"]),
        "asked": ASKED[row["style"]],
        "D_train": SEEN[row["trained"]],
        "lost": interval_text(row["lost"]) if table == ANY else _number(row["lost"], "-"),
        "gained": interval_text(row["gained"]),
        "loss": interval_text(row["loss_against"]["known_only"]),
    }


def _reference_rows(reference: Mapping[str, Any] | None, table: str) -> list[dict[str, str]]:
    """The base itself and the majority answer; neither trained, so neither has T or P."""
    if not reference:
        return []
    none = dict.fromkeys(("rank", "S@P90", "over sft", "lost", "gained", "loss"), "-")
    blank = {**dict.fromkeys(_HEADERS[table], ""), **none, "P": _number(None), "T": _number(None)}
    base = interval_text(reference["base_stability"]), reference["base_macro"]
    if table == ANY:
        base = interval_text(reference["few_shot_stability"]), None
    majority = _share(reference["majority_micro"]), reference["majority_macro"]
    return [
        {**blank, "method": name, "S": stability, "macro S": _share(macro)}
        for name, (stability, macro) in (("the base itself", base), ("majority answer", majority))
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def marks(crossing: Mapping[str, Any]) -> str:
    """Returns the marks of an S@P90 that `LEGEND` explains."""
    return ("~" if crossing["coarse"] else "") + ("^" if crossing["first_point"] else "")


def _number(estimate: Mapping[str, Any] | None, missing: str = "not trained") -> str:
    return f"{estimate['value']:.3f}" if estimate else missing


def _markdown_text(text: str) -> str:
    """Keeps a stranger's name from breaking a table or becoming markup."""
    plain = _printable(text)
    for sign in "\\`*|[":
        plain = plain.replace(sign, f"\\{sign}")
    return plain.replace("&", "&amp;").replace("<", "&lt;")


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Compares two boards: `added` and `removed` ids of records, and `changed`.

    That is bundle, method, protocol, submitter, field, before and after of each row new, gone or
    moved.
    """
    old, new = _flat_rows(before), _flat_rows(after)
    changed = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        sides: dict[str, tuple[Any, Any]] = {"row": (was and "there", now and "there")}
        if now:
            sides |= {field: (was and was.get(field), now.get(field)) for field in _COMPARED}
        named = dict(zip(_ROW_KEY, key, strict=True))
        changed += [
            {**named, "field": field, "before": first, "after": second}
            for field, (first, second) in sides.items()
            if first != second
        ]
    were, are = ({i for r in rows.values() for i in r["records"].split()} for rows in (old, new))
    return {"added": sorted(are - were), "removed": sorted(were - are), "changed": changed}


def _flat_rows(board: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {
        (bundle["sha256"][:12], *_row_key(row)): _flat(row)
        for bundle in board["bundles"]
        for row in bundle["rows"]
    }


def _row_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    named = (row[name] for name in ("method", "protocol", "submitter"))
    return (*named, ASKED[row["style"]], SEEN[row["trained"]])


def diff_text(found: Mapping[str, Any]) -> str:
    """Renders a difference as markdown, for a pull request."""
    head = f"{len(found['added'])} records added, {len(found['removed'])} removed or superseded."
    names = (*_ROW_KEY, "field", "before", "after")
    rows = [[_value(change[name]) for name in names] for change in found["changed"]]
    table = tabulate(rows, names, tablefmt="github", disable_numparse=True)
    return "\n\n".join([head, table if rows else "The board doesn't change."])


def _value(value: Any) -> str:
    number = value is None or isinstance(value, float)
    return _share(value) if number else _markdown_text(str(value))
