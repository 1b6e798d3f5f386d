"""One page on an interference experiment: figures, numbers, and the paper's beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.mechanism import figures
from factual_forgetting.mechanism.conditions import OTHER, SAME, Settings
from factual_forgetting.mechanism.findings import (
    BITS_PER_PARAMETER,
    Row,
    bases_of,
    cell,
    cloning_of,
    grid_of,
    markdown,
    size,
    values_of,
)
from factual_forgetting.protocol.recipe import protocol_sha256

REPORT = "report.md"
# What is told of two conditions that differ in one thing.
_TOLD = {
    "keys": ("facts", "method"),
    "method": ("facts", "keys"),
    "values": ("facts", "keys", "method"),
}
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
        markdown({**found, "arms": grid}),
        _contrasts(found, "keys"),
        _contrasts(found, "method"),
        "Tokens of a key and their mean rank in the vocabulary (a low rank is a frequent token):",
        _keys(grid),
    )


def _contrasts(found: Row, differing: str) -> str:
    first = found["arms"][0]
    rows = [
        [
            f"{row['more']} minus {row['than']}",
            *[f"{row[name]:,}" if name == "facts" else row[name] for name in _TOLD[differing]],
            ", ".join(map(str, row["seeds"])),
            cell(row),
            "yes" if row["low"] > 0 or row["high"] < 0 else "no",
        ]
        for row in found["contrasts"]
        if row["differing"] == differing
        and all(row[name] == first[name] for name in ("bundle_sha256", "passes", "mixed"))
        and (differing == "values" or row["values"] == first["values"])
    ]
    if not rows:
        return ""
    told = [name.replace("facts", "new facts") for name in _TOLD[differing]]
    headers = [differing, *told, "seeds", "more forgotten", "clear of 0"]
    table = _table(rows, headers)
    return _joined(f"Differences in {differing}, all else alike, fact by fact:", table)


def _keys(arms: Sequence[Row]) -> str:
    largest = {arm["keys"]: arm for arm in sorted(arms, key=lambda arm: arm["facts"])}
    rows = [
        [keys, f"{arm['key_tokens']:.2f}", f"{arm['key_rank']:.0f}", str(arm["keys_dropped"])]
        for keys, arm in largest.items()
    ]
    return _table(rows, ["keys", "tokens", "rank", "dropped as known already"])


def _drift(found: Row) -> str:
    return f"""## Drift

1 - cosine of the state of the last subject token of D_Held's subjects, before and after.

![Drift]({figures.DRIFT})"""


def _overlap(found: Row) -> str:
    rows = []
    for arm in grid_of(found):
        if row := arm["overlap"]:
            told = [arm["keys"], f"{arm['facts']:,}", arm["method"], f"{row['nearness']:.2f}"]
            rows.append([*told, cell(row["controlled"]), cell(row["alone"])])
    if not rows:
        return ""
    headers = ["keys", "new facts", "method", "nearness", "slope", "without controls"]
    return f"""## Overlap

Nearness is the mean cosine of a held-out subject to its five nearest new ones, in the base's
middle layer, around the mean of the held-out ones. The slope is what is forgotten more at one
standard deviation more of it, fact by fact, at equal answer frequency and number of tokens.

![Overlap]({figures.OVERLAP})

{_table(rows, headers)}"""


def _values(found: Row) -> str:
    arms = values_of(found)
    if not arms:
        return ""
    return _joined(
        "## Answers of the new facts",
        "Real answers are those of the relation, shuffled ones those of other relations, new ones "
        "invented.",
        markdown({**found, "arms": arms}),
        _contrasts(found, "values"),
    )


def _cloning(found: Row) -> str:
    arms = cloning_of(found)
    if not arms:
        return ""
    rows = [
        [
            f"{arm['keys']} keys, {arm['values']} answers",
            f"{arm['facts']:,}",
            f"{arm['at_end']['plasticity']:.3f}",
            cell(arm["at_end"][SAME]),
            f"{arm['at_end']['abstained'][SAME]:.3f}",
            cell(arm["at_end"][OTHER]),
        ]
        for arm in arms
    ]
    headers = ["targets", "facts", "P", "forgotten, same relation", "abstained", "other relations"]
    shares = [arm["at_end"][SAME]["value"] for arm in arms]
    return f"""## Rival: behaviour cloning

The hypothesis: imitating targets that the base would not give teaches it to guess, whatever they
are about. It predicts that the same number of such targets costs the same with other keys, and
without new associations: abstentions, or the answers of known facts shuffled. After
{arms[0]["passes"]} passes each:

![Behaviour cloning]({figures.CLONING})

{_table(rows, headers)}

Seen: the same number of targets costs from {min(shares):.3f} to {max(shares):.3f} of the relation.
A fact that is answered by an abstention counts as forgotten; the column after it says how many of
the relation are."""


def _capacity(found: Row) -> str:
    groups = bases_of(found)
    if not groups:
        return ""
    rows = [
        [
            size(arm["parameters"]),
            keys,
            f"{arm['facts']:,}",
            f"{arm['share_of_capacity']:.2e}",
            cell(arm["at_level"][SAME]),
        ]
        for keys, arms in groups.items()
        for arm in sorted(arms, key=lambda arm: (arm["facts"], arm["parameters"]))
    ]
    headers = ["parameters", "keys", "new facts", "share of capacity", "forgotten, same relation"]
    shares = [arm["share_of_capacity"] for arms in groups.values() for arm in arms]
    return f"""## Rival: capacity

The hypothesis: old facts make room for new ones. It predicts that forgetting grows with the share
of capacity that the new facts take, whatever their keys, and is small while the share is. The
share is the bits of the new answers over {BITS_PER_PARAMETER} bits a parameter (Allen-Zhu & Li
2024, arXiv 2404.05405). Bases of several sizes were taught the same world:

![Capacity]({figures.CAPACITY})

{_table(rows, headers)}

Seen: the new facts take at most {max(shares):.2%} of capacity. On one base, with as many facts,
kinds of keys differ by up to {_widest(groups):.3f} in what is forgotten."""


def _widest(groups: Mapping[str, Sequence[Row]]) -> float:
    """The largest difference between kinds of keys on one base with as many facts."""
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    for arms in groups.values():
        for arm in arms:
            cells[arm["bundle_sha256"], arm["facts"]].append(arm["at_level"][SAME]["value"])
    return max(max(values) - min(values) for values in cells.values())


def _differences(settings: Settings, found: Row) -> str:
    most = max(arm["facts"] for arm in grid_of(found))
    return f"""## The paper's figures, and what is different here

{_table([list(row) for row in _PAPER], ["Kaplan et al. 2026", "reported"])}

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


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return str(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
