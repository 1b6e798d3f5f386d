"""One page on an interference experiment: figures, numbers, and the paper's beside them.

The page is `report.md`. What it says of Kaplan et al. 2026 (arXiv 2604.15574) is as far as readers
of the paper report.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.mechanism.conditions import OTHER, SAME, Settings
from factual_forgetting.mechanism.drift import Row
from factual_forgetting.mechanism.findings import (
    BITS_PER_PARAMETER,
    VARIED,
    bases_of,
    cloning_of,
    grid_of,
    like_first,
    size,
    values_of,
)
from factual_forgetting.protocol.config import protocol_sha256
from factual_forgetting.scoring.statistics import interval_text

_REPORT = "report.md"
_PAGE = Path(__file__).parent / _REPORT
# Tables whose section is left out where they are empty.
_OPTIONAL = ("overlap", "answers", "cloning", "capacity")


def write_report(found: Row, bundles: Sequence[Bundle], settings: Settings, folder: Path) -> None:
    """Writes `report.md` beside the figures that it shows.

    Args:
        found: What `findings.summarised` returned.
        bundles: The bundles of the experiment, that of the main grid first.
        settings: The experiment's settings.
        folder: Directory of the figures.
    """
    told = _told(found) | {
        "settings": settings,
        "recipe_sha256": protocol_sha256(settings.protocol),
        "bundle": bundles[0],
    }
    missing = [f"{{{name}}}" for name in _OPTIONAL if not told[name]]
    sections = re.split(r"(?m)^(?=## )", _PAGE.read_text(encoding="utf-8"))
    page = "".join(part for part in sections if not any(table in part for table in missing))
    text = re.sub(r"\n{3,}", "\n\n", page.format(**told))
    files.write_atomic(folder / _REPORT, text.encode())


def _told(found: Row) -> Row:
    """Returns what the page tells of the findings, by the names that it has there."""
    grid, cloned, bases, level = grid_of(found), cloning_of(found), bases_of(found), found["level"]
    costs = [arm["at_end"][SAME]["value"] for arm in cloned]
    shares = [arm["share_of_capacity"] for arms in bases.values() for arm in arms]
    return {
        "level": level,
        "grid": arms_table(grid, level),
        **{f"{name}_differences": _differences(found, name) for name in VARIED},
        "tokens": _tokens(grid),
        "overlap": _overlap(grid),
        "answers": arms_table(values_of(found), level),
        "cloned": cloned,
        "cloning": _cloning(cloned),
        "cost": (min(costs, default=0), max(costs, default=0)),
        "bits": BITS_PER_PARAMETER,
        "capacity": _capacity(bases),
        "share": max(shares, default=0),
        "widest": _widest(bases),
        "most": max(arm["facts"] for arm in grid),
        "mixed": "D_Known is mixed into every pass here" if grid[0]["mixed"] else "none",
    }


def arms_table(arms: Sequence[Row], level: float) -> str:
    """Returns the table of arms, at the level or at the end; several bases by their size."""
    rows = [_arm_cells(arm, level) for arm in arms]
    if len({arm["bundle_sha256"] for arm in arms}) > 1:
        sizes = [size(arm["parameters"]) for arm in arms]
        rows = [{"base": told, **row} for told, row in zip(sizes, rows, strict=True)]
    return _table(rows)


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    return tabulate(list(rows), headers="keys", tablefmt="github", disable_numparse=True)


def _arm_cells(arm: Row, level: float) -> dict[str, str]:
    fixed = arm["passes"] is not None
    place = arm["at_end"] if fixed else arm["at_level"] or arm["at_end"]
    missed = "" if fixed or arm["at_level"] else f" (under {level})"
    drift = place["drift"][SAME]
    return {
        "keys": arm["keys"] + ("" if arm["mixed"] else ", alone"),
        "values": arm["values"],
        "new facts": f"{arm['facts']:,}",
        "method": arm["method"],
        "seeds": str(len(arm["seeds"])),
        "passes": f"{place['passes']:.1f}",
        "P": f"{place['plasticity']:.3f}{missed}",
        "forgotten, same relation": interval_text(place[SAME]),
        "other relations": interval_text(place[OTHER]),
        "drift": "-" if drift is None else f"{drift:.3f}",
    }


def _differences(found: Row, differing: str) -> str:
    told, alike = (
        [name for name in names if name != differing]
        for names in (("keys", "method"), ("bundle_sha256", "passes", "mixed", "values"))
    )
    contrasts = [row for row in found["contrasts"] if row["differing"] == differing]
    rows = [
        {
            differing: f"{row['more']} minus {row['than']}",
            "new facts": f"{row['facts']:,}",
            **{name: row[name] for name in told},
            "seeds": ", ".join(map(str, row["seeds"])),
            "more forgotten": interval_text(row),
            "clear of 0": "yes" if row["low"] > 0 or row["high"] < 0 else "no",
        }
        for row in like_first(found, contrasts, *alike)
    ]
    if not rows:
        return ""
    return f"Differences in {differing}, all else alike, fact by fact:\n\n{_table(rows)}"


def _tokens(arms: Sequence[Row]) -> str:
    largest = {arm["keys"]: arm for arm in sorted(arms, key=lambda arm: arm["facts"])}
    return _table(
        {
            "keys": keys,
            "tokens": f"{arm['key_tokens']:.2f}",
            "rank": f"{arm['key_rank']:.0f}",
            "dropped as known already": str(arm["keys_dropped"]),
        }
        for keys, arm in largest.items()
    )


def _overlap(arms: Sequence[Row]) -> str:
    return _table(
        {
            "keys": arm["keys"],
            "new facts": f"{arm['facts']:,}",
            "method": arm["method"],
            "nearness": f"{arm['overlap']['nearness']:.2f}",
            "slope": interval_text(arm["overlap"]["controlled"]),
            "without controls": interval_text(arm["overlap"]["alone"]),
        }
        for arm in arms
        if arm["overlap"]
    )


def _cloning(arms: Sequence[Row]) -> str:
    return _table(
        {
            "targets": f"{arm['keys']} keys, {arm['values']} answers",
            "facts": f"{arm['facts']:,}",
            "P": f"{arm['at_end']['plasticity']:.3f}",
            "forgotten, same relation": interval_text(arm["at_end"][SAME]),
            "abstained": f"{arm['at_end']['abstained'][SAME]:.3f}",
            "other relations": interval_text(arm["at_end"][OTHER]),
        }
        for arm in arms
    )


def _capacity(bases: Mapping[str, Sequence[Row]]) -> str:
    return _table(
        {
            "parameters": size(arm["parameters"]),
            "keys": keys,
            "new facts": f"{arm['facts']:,}",
            "share of capacity": f"{arm['share_of_capacity']:.2e}",
            "forgotten, same relation": interval_text(arm["at_level"][SAME]),
        }
        for keys, arms in bases.items()
        for arm in sorted(arms, key=lambda arm: (arm["facts"], arm["parameters"]))
    )


def _widest(bases: Mapping[str, Sequence[Row]]) -> float:
    """Returns the largest difference between kinds of keys on one base with as many facts."""
    alike: dict[tuple[str, int], list[float]] = defaultdict(list)
    for arms in bases.values():
        for arm in arms:
            alike[arm["bundle_sha256"], arm["facts"]].append(arm["at_level"][SAME]["value"])
    return max((max(values) - min(values) for values in alike.values()), default=0.0)
