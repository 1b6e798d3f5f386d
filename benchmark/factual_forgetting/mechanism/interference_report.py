"""One page on an interference experiment: figures, numbers, and the paper's beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from tabulate import tabulate

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.mechanism import figures
from factual_forgetting.mechanism.conditions import OTHER, SAME, Settings
from factual_forgetting.mechanism.drift import Row
from factual_forgetting.mechanism.findings import (
    BITS_PER_PARAMETER,
    bases_of,
    cell,
    cloning_of,
    grid_of,
    like_first,
    size,
    values_of,
)
from factual_forgetting.protocol.config import protocol_sha256

REPORT = "report.md"
# Of two conditions that differ in one thing: what is told, and what they share with the first arm.
_TOLD = {"keys": ["method"], "method": ["keys"], "values": ["keys", "method"]}
_ALIKE = {name: ["bundle_sha256", "passes", "mixed", "values"] for name in ("keys", "method")}
_ALIKE["values"] = ["bundle_sha256", "passes", "mixed"]
# Kaplan et al. 2026 (arXiv 2604.15574), as far as readers of it report.
_PAPER = [
    ("forgotten, 10^6 name-like keys", "38-41 %"),
    ("forgotten, 10^6 identifiers", "4 %, whatever the values"),
    ("forgotten, identifiers at any scale", "0-4 %"),
    ("drift while the format is learned, all conditions", "about .05"),
    ("drift then, name-like keys", "about .11"),
    ("drift then, identifiers or self-distillation", "about .05"),
]


def write_report(found: Row, bundles: Sequence[Bundle], settings: Settings, folder: Path) -> None:
    """Writes `report.md` beside the figures that it shows.

    Args:
        found: What `findings.findings` returned.
        bundles: The bundles of the experiment, that of the main grid first.
        settings: The experiment's settings.
        folder: Directory of the figures.
    """
    text = _joined(
        _head(bundles[0], settings, found),
        _forgetting(found),
        _drift(found),
        _overlap(found),
        _values(found),
        _cloning(found),
        _capacity(found),
        _differences(settings, found),
    )
    files.write_atomic(folder / REPORT, f"{text}\n".encode())


def arms_table(arms: Sequence[Row], level: float) -> str:
    """Returns the table of arms, at the level or at the end; several bases by their size."""
    rows = [_arm_cells(arm, level) for arm in arms]
    if len({arm["bundle_sha256"] for arm in arms}) > 1:
        sizes = [size(arm["parameters"]) for arm in arms]
        rows = [{"base": told, **row} for told, row in zip(sizes, rows, strict=True)]
    return _table(rows)


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
        "forgotten, same relation": cell(place[SAME]),
        "other relations": cell(place[OTHER]),
        "drift": "-" if drift is None else f"{drift:.3f}",
    }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _head(bundle: Bundle, settings: Settings, found: Row) -> str:
    protocol = settings.protocol
    base = bundle.manifest["base"]
    return f"""# Why facts are forgotten

New facts of one relation (`{settings.relation}`) are taught to a base that knows others of it.
Their keys are name-like (tokens of known subjects recombined), matched (the same recombinations,
written in tokens that no known subject has, of the same form and about the same frequency) or
identifiers (`Loc_fcfb42`). Forgetting is the fall of accuracy on D_Held from its peak, fact by
fact, read where P, the accuracy on the new facts, first reaches {found["level"]}. Brackets are
95 % intervals over facts, seeds averaged per fact.

Base `{base["pretrained"]}` (weights {base["weights_sha256"][:12]}), bundle {bundle.sha256[:12]},
recipe `{protocol.name}` ({protocol_sha256(protocol)[:12]}: rate {protocol.learning_rate:g}, batch
{protocol.batch_size}), at most {settings.most_passes} passes."""


def _forgetting(found: Row) -> str:
    grid = grid_of(found)
    return _joined(
        "## Forgetting by kind of key and number of new facts",
        f"![Forgetting]({figures.FORGETTING})",
        arms_table(grid, found["level"]),
        _contrasts(found, "keys"),
        _contrasts(found, "method"),
        "Tokens of a key and their mean rank in the vocabulary (a low rank is a frequent token):",
        _keys(grid),
    )


def _contrasts(found: Row, differing: str) -> str:
    contrasts = [row for row in found["contrasts"] if row["differing"] == differing]
    rows = [
        {
            differing: f"{row['more']} minus {row['than']}",
            "new facts": f"{row['facts']:,}",
            **{name: row[name] for name in _TOLD[differing]},
            "seeds": ", ".join(map(str, row["seeds"])),
            "more forgotten": cell(row),
            "clear of 0": "yes" if row["low"] > 0 or row["high"] < 0 else "no",
        }
        for row in like_first(found, contrasts, *_ALIKE[differing])
    ]
    if not rows:
        return ""
    return _joined(f"Differences in {differing}, all else alike, fact by fact:", _table(rows))


def _keys(arms: Sequence[Row]) -> str:
    largest = {arm["keys"]: arm for arm in sorted(arms, key=lambda arm: arm["facts"])}
    return _table(
        [
            {
                "keys": keys,
                "tokens": f"{arm['key_tokens']:.2f}",
                "rank": f"{arm['key_rank']:.0f}",
                "dropped as known already": str(arm["keys_dropped"]),
            }
            for keys, arm in largest.items()
        ]
    )


def _drift(found: Row) -> str:
    return f"""## Drift

1 - cosine of the state of the last subject token of D_Held's subjects, before and after.

![Drift]({figures.DRIFT})"""


def _overlap(found: Row) -> str:
    rows = [
        {
            "keys": arm["keys"],
            "new facts": f"{arm['facts']:,}",
            "method": arm["method"],
            "nearness": f"{arm['overlap']['nearness']:.2f}",
            "slope": cell(arm["overlap"]["controlled"]),
            "without controls": cell(arm["overlap"]["alone"]),
        }
        for arm in grid_of(found)
        if arm["overlap"]
    ]
    if not rows:
        return ""
    return f"""## Overlap

Nearness is the mean cosine of a held-out subject to its five nearest new ones, in the base's
middle layer, around the mean of the held-out ones. The slope is what is forgotten more at one
standard deviation more of it, fact by fact, at equal answer frequency and number of tokens.

![Overlap]({figures.OVERLAP})

{_table(rows)}"""


def _values(found: Row) -> str:
    arms = values_of(found)
    if not arms:
        return ""
    return _joined(
        "## Answers of the new facts",
        "Real answers are those of the relation, shuffled ones those of other relations, new ones "
        "invented.",
        arms_table(arms, found["level"]),
        _contrasts(found, "values"),
    )


def _cloning(found: Row) -> str:
    arms = cloning_of(found)
    if not arms:
        return ""
    rows = [
        {
            "targets": f"{arm['keys']} keys, {arm['values']} answers",
            "facts": f"{arm['facts']:,}",
            "P": f"{arm['at_end']['plasticity']:.3f}",
            "forgotten, same relation": cell(arm["at_end"][SAME]),
            "abstained": f"{arm['at_end']['abstained'][SAME]:.3f}",
            "other relations": cell(arm["at_end"][OTHER]),
        }
        for arm in arms
    ]
    shares = [arm["at_end"][SAME]["value"] for arm in arms]
    return f"""## Rival: behaviour cloning

The hypothesis: imitating targets that the base would not give teaches it to guess, whatever they
are about. It predicts that the same number of such targets costs the same with other keys, and
without new associations: abstentions, or the answers of known facts shuffled. After
{arms[0]["passes"]} passes each:

![Behaviour cloning]({figures.CLONING})

{_table(rows)}

Seen: the same number of targets costs from {min(shares):.3f} to {max(shares):.3f} of the relation.
A fact that is answered by an abstention counts as forgotten; the column after it says how many of
the relation are."""


def _capacity(found: Row) -> str:
    groups = bases_of(found)
    if not groups:
        return ""
    rows = [
        {
            "parameters": size(arm["parameters"]),
            "keys": arm["keys"],
            "new facts": f"{arm['facts']:,}",
            "share of capacity": f"{arm['share_of_capacity']:.2e}",
            "forgotten, same relation": cell(arm["at_level"][SAME]),
        }
        for arms in groups.values()
        for arm in sorted(arms, key=lambda arm: (arm["facts"], arm["parameters"]))
    ]
    shares = [arm["share_of_capacity"] for arms in groups.values() for arm in arms]
    return f"""## Rival: capacity

The hypothesis: old facts make room for new ones. It predicts that forgetting grows with the share
of capacity that the new facts take, whatever their keys, and is small while the share is. The
share is the bits of the new answers over {BITS_PER_PARAMETER} bits a parameter (Allen-Zhu & Li
2024, arXiv 2404.05405). Bases of several sizes were taught the same world:

![Capacity]({figures.CAPACITY})

{_table(rows)}

Seen: the new facts take at most {max(shares):.2%} of capacity. On one base, with as many facts,
kinds of keys differ by up to {_widest(groups):.3f} in what is forgotten."""


def _widest(groups: Mapping[str, Sequence[Row]]) -> float:
    """Returns the largest difference between kinds of keys on one base with as many facts."""
    alike: dict[tuple[str, int], list[float]] = defaultdict(list)
    for arm in chain(*groups.values()):
        alike[arm["bundle_sha256"], arm["facts"]].append(arm["at_level"][SAME]["value"])
    return max(max(values) - min(values) for values in alike.values())


def _differences(settings: Settings, found: Row) -> str:
    most = max(arm["facts"] for arm in grid_of(found))
    return f"""## The paper's figures, and what is different here

{_table([{"Kaplan et al. 2026": told, "reported": number} for told, number in _PAPER])}

- Base: billions of parameters trained on the web there; a small model of an invented world here,
  whose knowledge is known.
- Scale: 10^3 to 10^6 new facts there; up to {most:,} here.
- Comparison: after a stated training there; at equal plasticity (P = {found["level"]}) here, where
  every condition has learned as much.
- Forgetting: relative or in points there, readers differ; in points here.
- Matched keys, the regression on nearness and both rivals are ours.
- Known facts: {"D_Known is mixed into every pass here" if found["arms"][0]["mixed"] else "none"};
  not known to us there.
- Drift: token position and normalisation weren't stated; here the last subject token, raw states.
- Self-distillation: the teacher is the base and tau is 1 here; a snapshot and tau .5 there."""
