"""The page: one static file with the board in it, and data beside it that opens from file://."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files as package_files
from pathlib import Path
from string import Template
from typing import Any

from factual_forgetting import files
from factual_forgetting.board.board import Entry
from factual_forgetting.board.dataset import TABLE, write_table
from factual_forgetting.board.form import Record, place
from factual_forgetting.board.links import Links
from factual_forgetting.board.record import Outcome, by_split
from factual_forgetting.board.remake import remake_commands
from factual_forgetting.board.tables import ASKED, LEGEND, SEEN, marks
from factual_forgetting.bundle.manifest import HELDOUT, UNKNOWN, Bundle
from factual_forgetting.scoring.statistics import interval_text
from factual_forgetting.scoring.styles import STYLES

INDEX, BOARD, DATA = "index.html", "board.json", "data"
_UNPUBLISHED = Links()
_OURS = re.compile(r"(facts-[0-9a-f]{12}|record-[0-9a-f]{16}|[0-9a-f]{12}-[0-9a-f]{12})\.js")
_SHOWN = (
    "method", "family", "protocol", "submitter", "track", "level", "trials", "rank", "unranked",
    "reference",
)  # fmt: skip


def tell_records(
    entries: Iterable[Entry],
    bundles: Mapping[str, Bundle],
    output: Path,
    links: Links = _UNPUBLISHED,
) -> Iterator[Entry]:
    """Writes the data of each record on its way to the board, so that they are read once.

    Args:
        entries: The records with their outcomes.
        bundles: Bundles at hand by hash; of others the page knows facts by number only.
        output: Directory of the page.
        links: Addresses of what it names.
    """
    for record, outcomes in entries:
        part = _record_part(record, outcomes, bundles.get(record.bundle_sha256), links)
        _write_data(output, f"record-{record.id}", part)
        yield record, outcomes


def write_page(
    board: Mapping[str, Any],
    bundles: Mapping[str, Bundle],
    output: Path,
    links: Links = _UNPUBLISHED,
) -> Path:
    """Writes the page, the board as JSON and as a table, and data; tells the page's path.

    The page needs no server and no network. Data that is shown on demand lies in scripts beside
    it, since a page opened from file:// may load scripts and nothing else. What an earlier call
    wrote there of records and rows that are gone is removed, and nothing else.

    Args:
        board: What `make_board` made of records that went through `tell_records`.
        bundles: As there.
        output: As there.
        links: As there.
    """
    kept = set()
    for bundle in board["bundles"]:
        known, short = bundles.get(bundle["sha256"]), bundle["sha256"][:12]
        kept.add(_write_data(output, f"facts-{short}", _facts(known) if known else None))
        for row in bundle["rows"]:
            told = {**_curve(row), "numbers": _numbers(row), "records": row["records"]}
            kept.add(_write_data(output, f"{short}-{row['id']}", told))
            kept |= {_data(output, f"record-{name}") for name in row["records"]}
    _remove_stale(output / DATA, kept)
    files.write_atomic(output / BOARD, (files.dumps(board) + "\n").encode())
    with files.atomic(output / TABLE) as stream:
        write_table(board, stream)
    files.write_atomic(output / INDEX, page(board, links).encode())
    return output / INDEX


def _remove_stale(folder: Path, kept: set[Path]) -> None:
    for path in folder.glob("*.js"):
        if path not in kept and _OURS.fullmatch(path.name) and path.is_file():
            with path.open("rb") as stream:
                ours = stream.readline(100).startswith(_call(path.stem).encode())
            if ours:
                path.unlink()


def page(board: Mapping[str, Any], links: Links = _UNPUBLISHED) -> str:
    """Returns the page's HTML with the board's summary in it."""
    site = package_files("factual_forgetting.board") / "site"
    template, css, js = ((site / f"page.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    summary = {"bundles": [_bundle(bundle, links) for bundle in board["bundles"]]}
    policy = (
        f"default-src 'none'; script-src '{_digest(js)}' 'self' file:; "
        f"style-src '{_digest(css)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    told = {"legend": _legend(), "board": _json(summary), "records": board["records"]}
    return Template(template).substitute(policy=policy, style=css, script=js, **told)


def _legend() -> str:
    pairs = ((html.escape(term), html.escape(meaning)) for term, meaning in LEGEND.items())
    return "\n".join(f"      <dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in pairs)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that can stand inside a script element, in any character encoding."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _write_data(output: Path, name: str, value: Any) -> Path:
    path = _data(output, name)
    files.write_atomic(path, f"{_call(name)}{_json(value)})\n".encode(), lasting=False)
    return path


def _data(output: Path, name: str) -> Path:
    return output / DATA / f"{name}.js"


def _call(name: str) -> str:
    return f"factualForgetting({_json(name)},"


def _bundle(bundle: Mapping[str, Any], links: Links) -> dict[str, Any]:
    reference, short = bundle["reference"] or {}, bundle["sha256"][:12]
    places = {row["id"]: place for place, row in enumerate(bundle["rows"])}
    return {
        "title": reference.get("name") or f"{bundle['base']} {short}",
        "about": _about(bundle, reference),
        "links": [["Base", links.base(bundle["base"])], ["Bundle", links.bundle(bundle["sha256"])]],
        "facts": f"facts-{short}",
        "rows": [
            {
                "key": f"{short}-{row['id']}",
                "by": links.submitter(row["submitter"]),
                "source": links.records(bundle["base"], bundle["sha256"], row["family"]),
                **_row(row),
            }
            for row in bundle["rows"]
        ],
        "references": _references(reference),
        # By their place in `rows`.
        **{name: [places[row] for row in rows] for name, rows in bundle["tables"].items()},
    }


def _about(bundle: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    counts = bundle["counts"]
    told = (
        f"Base {bundle['base']}, bundle {bundle['sha256'][:12]}: "
        f"{counts['known']:,} known and {counts['unknown']:,} new facts are trained on, "
        f"{counts['heldout']:,} known ones are held out."
    )
    touched = reference.get("heldout_subjects_as_training_objects")
    if touched is not None:
        told += (
            f" Candidates of D_Held left out because training speaks of them: "
            f"{reference['heldout_dropped_for_overlap'] or 0:,}; kept although their subject is "
            f"an answer in training: {touched:,}."
        )
    return told


def _references(reference: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not reference:
        return []
    majority = reference["majority_micro"]
    return [
        {
            "name": "the base itself",
            "S": _triple(reference["base_stability"]),
            "fewShot": _triple(reference["few_shot_stability"]),
        },
        {"name": "majority answer of each relation", "S": [_rounded(majority), None, None]},
    ]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    crossing = row["stability_at_p90"]
    return {
        **{key: row[key] for key in _SHOWN},
        "leak": row["heldout_in_training"],
        "seeds": len(row["records"]),
        "T": _triple(row["task_learning"]),
        "P": _triple(row["plasticity"]),
        "S": _triple(row["stability"]),
        "p90": _triple(crossing),
        "marks": marks(crossing) if crossing else "",
        "why": None if crossing else ("never" if row["curve"] else "no curve"),
        "lost": _triple(row["lost"]),
        "gained": _triple(row["gained"]),
        "asked": ASKED[row["style"]],
        "train": SEEN[row["trained"]],
        "loss": _triple(row["loss_against"]["known_only"]),
    }


def _triple(estimate: Mapping[str, Any] | None) -> list[float | None] | None:
    return [_rounded(estimate[key]) for key in ("value", "low", "high")] if estimate else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _curve(row: Mapping[str, Any]) -> dict[str, Any]:
    """The mean curve as [step, T, P, S], and P and S of each seed."""
    names = ("task_learning", "plasticity", "stability")
    points = row["curve"]
    seeds = range(len(points[0]["seeds"])) if points else ()
    return {
        "curve": [[p["step"], *(_rounded(p[name]) for name in names)] for p in points],
        "seeds": [[[_rounded(v) for v in p["seeds"][seed]] for p in points] for seed in seeds],
    }


def _numbers(row: Mapping[str, Any]) -> list[list[str]]:
    """What a row's part says beside the table: macro averages and paired differences."""
    crossing, losses = row["stability_at_p90"], row["loss_against"]
    seeds = f"{crossing['lowest']:.3f} to {crossing['highest']:.3f}" if crossing else "-"
    found = [
        ["T", interval_text(row["task_learning"])],
        ["P", interval_text(row["plasticity"])],
        ["S, mean over facts", interval_text(row["stability"])],
        ["S, mean over relations", f"{row['stability_macro']:.3f}"],
        ["lost", interval_text(row["lost"])],
        ["gained", interval_text(row["gained"])],
        ["S@P90", interval_text(crossing)],
        ["S@P90, range of seeds", seeds],
        ["S@P90 - that of sft, same seeds", interval_text(row["difference_at_p90"]["sft"])],
        ["S of known_only - S, same seeds", interval_text(losses["known_only"])],
        ["S of sft - S, same seeds", interval_text(losses["sft"])],
    ]
    return [pair for pair in found if pair[1] != "-"]


def _facts(bundle: Bundle) -> dict[str, list[list[str]]]:
    return {
        split: [[item.fact.question, item.fact.answers[0]] for item in bundle.splits[split]]
        for split in (HELDOUT, UNKNOWN)
    }


def _record_part(
    record: Record, outcomes: list[Outcome], bundle: Bundle | None, links: Links
) -> dict[str, Any]:
    parts = by_split(outcomes)
    held, new = parts[HELDOUT], parts[UNKNOWN]
    outcome = STYLES[record.style].outcome
    base = [p.base[outcome] for p in bundle.splits[HELDOUT]] if bundle else [True] * len(held)
    told = "Facts lost (of those the base gets right in the same prompt)"
    linked = links.of_record(record)
    return {
        "id": record.id,
        "seed": record.seed,
        "S": _share(held),
        "P": _share(new) if record.trained else None,
        "lost": [
            [index, one.answer]
            for index, (one, was_right) in enumerate(zip(held, base, strict=True))
            if was_right and not one.final
        ],
        "lostTitle": told if bundle else "Facts of D_Held now wrong",
        "learned": [index for index, one in enumerate(new) if one.final],
        "command": "\n".join(remake_commands(record)),
        "provenance": [[name, value, linked.get(name)] for name, value in _provenance(record)],
    }


def _share(outcomes: list[Outcome]) -> float | None:
    return _rounded(sum(one.final for one in outcomes) / len(outcomes)) if outcomes else None


def _tokenizer(record: Record) -> str | None:
    found, base = record.origin.tokenizer_sha256, record.origin.base_tokenizer_sha256
    return f"{found}, not that of the base" if found and base not in (None, found) else found


def _provenance(record: Record) -> list[list[Any]]:
    made, cost = record.environment, record.cost
    packages = ", ".join(f"{name} {version}" for name, version in sorted(made.packages.items()))
    dirty = " with uncommitted changes" if made.dirty else ""
    computed = (made.dtype, made.attention)
    protocol = record.protocol
    return [
        ["record", place(record.model_dump(mode="json"))],
        ["submitter", record.submitter],
        ["level", record.level],
        ["recorded", record.recorded],
        ["base", record.base.pretrained],
        ["base revision", record.base.revision],
        ["base weights", record.base.weights_sha256],
        ["bundle", record.bundle_sha256],
        ["protocol", f"{protocol.name} {protocol.sha256}" if protocol else None],
        ["weights", record.weights_sha256],
        ["repository", record.repository],
        ["told in", record.url],
        ["asked", ASKED[record.style]],
        ["facts of D_train", SEEN[record.trained]],
        ["outcomes", record.outcomes.sha256],
        ["answers judged by", record.matcher_version],
        ["descent", record.origin.descent],
        ["tokenizer", _tokenizer(record)],
        ["trained on", record.training_data.description],
        ["facts of D_Held in training", record.training_data.heldout],
        ["steps", cost.steps],
        ["tokens read", cost.tokens],
        ["tokens of extra forward passes", cost.extra_tokens],
        ["extra data", cost.extra_data],
        ["GPU hours", cost.gpu_hours],
        ["device", made.device],
        ["dtype, attention", ", ".join(name or "?" for name in computed)],
        ["batch size of training", made.training_batch_size],
        ["batch size of scoring", made.scoring_batch_size],
        ["packages", packages],
        ["commit", f"{made.commit}{dirty}" if made.commit else None],
        ["note", record.note],
    ]
