"""The board as text: markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import LATEX_ESCAPE_RULES, tabulate

from factual_forgetting import files
from factual_forgetting.board.board import KEEPS, LEARNS
from factual_forgetting.scoring.statistics import interval_text

TITLES = {
    LEARNS: "Learns new facts (ranked by S@P90)",
    KEEPS: "Need not learn (ranked by final S, at T of .95 or more)",
}
LEGEND = (
    "T task learning, P factual plasticity, S factual stability, macro S its mean over relations; "
    "S@P90: S where P first reaches .90, ~ fewer than 8 points before it, ^ at the first point; "
    "lost: share now wrong of what the base gets right in the same prompt; "
    "loss: S(known_only) - S(method), same seeds. "
    "95 % intervals over facts. Rank: 1 + number of methods significantly better; - unranked. "
    "! trained on D_Held, ? undeclared."
)
_START = ("rank", "method", "protocol", "track", "level", "seeds")
_HEADERS = {
    LEARNS: [*_START, "S@P90", "P", "S", "macro S", "lost"],
    KEEPS: [*_START, "S", "macro S", "T", "lost", "loss"],
}
Escape = Callable[[str], str]


def render_board(board: Mapping[str, Any], style: str) -> str:
    """Renders a board as `markdown`, `latex`, `csv` or `json`."""
    if style == "json":
        return files.dumps(board, indent=2)
    if style == "csv":
        return _csv(board)
    return latex(board) if style == "latex" else markdown(board)


def markdown(board: Mapping[str, Any]) -> str:
    """Renders the board as markdown: two tables a bundle."""
    parts = []
    for bundle in board["bundles"]:
        parts.append(f"Bundle {markdown_text(_title(bundle))}")
        for table, title in TITLES.items():
            cells = _cells(bundle, table, markdown_text)
            text = tabulate(cells, _HEADERS[table], tablefmt="github", disable_numparse=True)
            parts += [f"**{title}**", text]
        parts.append(LEGEND)
    return "\n\n".join(parts)


def latex(board: Mapping[str, Any]) -> str:
    """Renders the board as LaTeX tables for the booktabs package, two a bundle."""
    return "\n\n".join(
        _latex_table(bundle, table, f"{title}. Bundle {_title(bundle)}.")
        for bundle in board["bundles"]
        for table, title in TITLES.items()
    )


def _latex_table(bundle: Mapping[str, Any], table: str, caption: str) -> str:
    cells = _cells(bundle, table, _printable)  # Tabulate escapes them.
    body = tabulate(cells, _HEADERS[table], tablefmt="latex_booktabs", disable_numparse=True)
    told = "".join(LATEX_ESCAPE_RULES.get(c, c) for c in _printable(caption))
    return f"\\begin{{table}}\n\\centering\n\\caption{{{told}}}\n{body}\n\\end{{table}}"


def _csv(board: Mapping[str, Any]) -> str:
    """One line a method and bundle, every number by itself."""
    stream = io.StringIO()
    lines = [
        flat({"bundle": bundle["sha256"], "base": bundle["base"], **row})
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


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a row of the board: `stability.value` is the value of its stability."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
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


def _cells(bundle: Mapping[str, Any], table: str, escape: Escape) -> list[list[str]]:
    by_id = {row["id"]: row for row in bundle["rows"]}
    rows = [_row(by_id[identifier], table, escape) for identifier in bundle["tables"][table]]
    return rows + _reference_rows(bundle, table)


def _row(row: Mapping[str, Any], table: str, escape: Escape) -> list[str]:
    rank = row["rank"][table]
    mark = {"included": " !", "unknown": " ?", "excluded": ""}[row["heldout_in_training"]]
    start = [
        "-" if rank is None else str(rank),
        escape(row["method"]) + mark,
        escape(row["protocol"].split("@")[0]),
        row["track"],
        row["level"],
        str(len(row["records"])),
    ]
    lost = _share(row["lost"])
    stability = [interval_text(row["stability"]), _share(row["stability_macro"])]
    if table == LEARNS:
        return [*start, _p90(row), _number(row["plasticity"]), *stability, lost]
    loss = interval_text(row["loss_against"]["known_only"])
    return [*start, *stability, _number(row["task_learning"]), lost, loss]


def _reference_rows(bundle: Mapping[str, Any], table: str) -> list[list[str]]:
    """The base itself and the majority answer; neither trained, so neither has T or P."""
    reference = bundle["reference"]
    if not reference:
        return []
    base = [interval_text(reference["base_stability"]), _share(reference["base_macro"])]
    majority = [_share(reference[f"majority_{mean}"]) for mean in ("micro", "macro")]
    rows = []
    for name, stability in (("the base itself", base), ("majority answer", majority)):
        learns, keeps = ["-", "not trained", *stability, "-"], [*stability, "not trained", "-", "-"]
        rows.append(["-", name, "", "", "", "", *(learns if table == LEARNS else keeps)])
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _p90(row: Mapping[str, Any]) -> str:
    crossing = row["stability_at_p90"]
    if crossing is None:
        return "never" if row["curve"] else "no curve"
    return marks(crossing) + interval_text(crossing)


def marks(crossing: Mapping[str, Any]) -> str:
    """Returns the marks of an S@P90 that `LEGEND` explains."""
    return ("~" if crossing["coarse"] else "") + ("^" if crossing["first_point"] else "")


def _number(estimate: Mapping[str, Any] | None) -> str:
    return f"{estimate['value']:.3f}" if estimate else "not trained"


def markdown_text(text: str) -> str:
    """Keeps a stranger's name from breaking a table or becoming markup."""
    plain = _printable(text)
    for sign in "\\`*|[":
        plain = plain.replace(sign, f"\\{sign}")
    return plain.replace("&", "&amp;").replace("<", "&lt;")


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())
