"""Comparisons as text and as one page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from factual_forgetting.comparison.outcomes import Pair
from factual_forgetting.errors import visible
from factual_forgetting.scoring.report import LOST
from factual_forgetting.scoring.statistics import Estimate, interval_text
from factual_forgetting.scoring.threshold import Threshold

_MOST_SHOWN = 200
_MARKDOWN, _HTML = "github", "html"
_STYLES = {
    "few_shot": "other exemplars",
    "zero_shot": "the question alone",
    "chat": "other exemplars, as turns of a chat",
}
_LEGEND = (
    "S: known facts that are right. Lost: of those that the base has right in the same prompt, "
    "the ones that are wrong. Net: S of the base minus S, paired. Gained: of facts that the base "
    "has wrong in every prompt, the ones that are right. The base's own line is the floor: what "
    "another prompt alone loses and gains. In brackets 95 % intervals over facts within relations."
)
_CSS = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;"
    "color:#1d2228;background:#fbfaf7}table{border-collapse:collapse;display:block;overflow-x:auto}"
    "th,td{padding:.25rem .7rem;border-bottom:1px solid #dcdad3;text-align:left}img{max-width:100%}"
    "@media(prefers-color-scheme:dark){body{color:#e4e1d9;background:#14171a}"
    "th,td{border-color:#3a3f45}}"
)
_Outcomes = Mapping[str, Sequence[Pair]]


class _Table(NamedTuple):
    title: str
    rows: list[list[str]]
    headers: list[str]


def comparison_text(
    summary: Mapping[str, Any], outcomes: _Outcomes, form: str, show: str | None = None
) -> str:
    """Writes a comparison as text.

    Args:
        summary: What was found.
        outcomes: Each fact before and after, by checkpoint.
        form: tabulate's name of a form of tables: `simple` or `github`.
        show: One of `FATES`: lists these facts with all answers.
    """
    head = "## " if form == _MARKDOWN else ""
    parts = [_lead(summary), _draw(_main(summary), form), _LEGEND, *_sentences(summary)]
    for table in _groups(summary):
        parts += [f"{head}{table.title}", _draw(table, form)]
    if show:
        table = _facts(outcomes, show, form)
        parts += [f"{head}{table.title}", _draw(table, form)]
    return "\n\n".join(parts)


def breaches(limit: Threshold, summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a limit finds, for each checkpoint whose whole interval is beyond it."""
    side = "over" if limit.above else "under"
    for row in summary["checkpoints"]:
        found = row["measures"][limit.metric]
        if found and limit.holds(Estimate(**found)):
            told = f"{limit.metric} is {interval_text(found)}, all of it {side} {limit.bound:g}"
            yield f"{visible(row['name'])}: {told}"


def comparison_page(summary: Mapping[str, Any], outcomes: _Outcomes, plot: bytes) -> str:
    """Returns a page of HTML with a plot (SVG) in it; it runs no script and loads nothing."""
    image = base64.b64encode(plot).decode()
    title = html.escape(f"What was forgotten of {visible(summary['base_name'])}")
    tables = [_main(summary), *_groups(summary), _facts(outcomes, LOST, _HTML)]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_CSS}</style></head><body>\n<h1>{title}</h1>",
        f"<p>{html.escape(_lead(summary))}</p>",
        f'<img alt="lost and gained by checkpoint" src="data:image/svg+xml;base64,{image}">',
        *(f"<h2>{html.escape(table.title)}</h2>\n{_draw(table, _HTML)}" for table in tables),
        *(f"<p>{html.escape(text)}</p>" for text in (_LEGEND, *_sentences(summary))),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _draw(table: _Table, form: str) -> str:
    """Lays out a table; tabulate escapes cells for HTML, and nothing for markdown."""
    rows = table.rows
    if form == _MARKDOWN:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return str(tabulate(rows, headers=table.headers, tablefmt=form, disable_numparse=True))


def _lead(summary: Mapping[str, Any]) -> str:
    settings, portion = summary["settings"], summary["portion"]
    base = visible(summary["base_name"])
    told = (
        f"{base} knows {summary['known']:,} of {portion['asked']:,} facts: "
        f"it has them right in all of {settings['runs']} prompts of {settings['shots']} exemplars. "
        f"They and {summary['unknown']:,} that it has wrong in all of them are asked once more, of "
        f"every model, in one prompt outside those ({_STYLES[settings['style']]})."
    )
    return f"{told} {_stopped(summary)}".rstrip()


def _stopped(summary: Mapping[str, Any]) -> str:
    portion, nets = summary["portion"], [row["measures"]["net"] for row in summary["checkpoints"]]
    if not portion["quick"]:
        return ""
    width = max(max(net["high"] - net["value"], net["value"] - net["low"]) for net in nets)
    where = f"the net loss is known within {100 * width:.1f} points"
    if portion["asked"] < portion["of"]:
        return f"Quick: stopped where {where}, {portion['asked']:,} of {portion['of']:,} facts in."
    return f"Quick: all {portion['of']:,} facts were asked, and {where}."


def _main(summary: Mapping[str, Any]) -> _Table:
    floor = summary["floor"]
    rows = [["the base itself", floor["stability"], floor["lost"], None, floor["gained"]]]
    for row in summary["checkpoints"]:
        found = row["measures"]
        rows.append(
            [visible(row["name"]), *(found[key] for key in ("stability", "lost", "net", "gained"))]
        )
    cells = [[row[0], *map(interval_text, row[1:])] for row in rows]
    return _Table("Kept, lost and gained", cells, ["model", "S", "lost", "net", "gained"])


def _groups(summary: Mapping[str, Any]) -> Iterator[_Table]:
    """Yields a table for each column, with a line for each group and checkpoint."""
    headers = ["checkpoint", "known", "S of the base", "S", "kept", "lost", "net", "gained"]
    for column in summary["checkpoints"][0]["groups"]:
        rows = [
            [visible(group["group"]), visible(row["name"]), str(group["known"]), *_of_group(group)]
            for row in summary["checkpoints"]
            for group in row["groups"][column]
        ]
        yield _Table(f"By {column}", rows, [column, *headers])


def _of_group(group: Mapping[str, Any]) -> list[str]:
    def value(key: str) -> str:
        return f"{group[key]['value']:.3f}" if group[key] else "-"

    shares = [value(key) for key in ("base_stability", "stability", "kept", "lost")]
    return [*shares, interval_text(group["net"]), value("gained")]


def _sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    for row in summary["mcnemar"]:
        first, second = map(visible, row["checkpoints"])
        yield (
            f"{row['only_first_right']} known facts that only {first} has right, "
            f"{row['only_second_right']} that only {second} has right; exact McNemar "
            f"p = {row['p_value']:.3g}"
        )
    for note in summary["notes"]:
        yield f"Note: {visible(note)}"


def _facts(outcomes: _Outcomes, fate: str, form: str) -> _Table:
    """Lists the facts that have a fate in some checkpoint, those that the base was surest of first.

    Answers are a stranger's text: in markdown they stand as code, where nothing is a link.
    """
    columns = list(outcomes.values())
    chosen = [row for row in zip(*columns, strict=True) if any(p.fate == fate for p in row)]
    chosen.sort(key=lambda row: -(row[0].margin or 0))
    quoted = _code if form == _MARKDOWN else visible
    rows = [
        [visible(row[0].fact.relation), *map(quoted, _told(row))] for row in chosen[:_MOST_SHOWN]
    ]
    names = ["relation", "question", "gold", "the base", *map(visible, outcomes)]
    shown = f" ({_MOST_SHOWN} of {len(chosen):,})" if len(chosen) > _MOST_SHOWN else ""
    return _Table(f"Facts that are {fate} in some checkpoint{shown}", rows, names)


def _told(row: Sequence[Pair]) -> list[str]:
    one = row[0]
    asked = [one.fact.question, one.fact.answers[0], one.base.text]
    return [*asked, *(pair.reply.text for pair in row)]


def _code(text: str) -> str:
    return f"`{visible(text).replace('`', chr(39))}`" if text else ""
