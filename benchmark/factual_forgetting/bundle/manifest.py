"""A bundle on disk: its files, its manifest, and the hash that identifies it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files, outputs
from factual_forgetting.bundle.datasheet import datasheet
from factual_forgetting.engines.prompts import exemplar_prefix
from factual_forgetting.errors import InputError, NotFoundError
from factual_forgetting.facts.fact import Fact

BUNDLE_FORMAT = "bundle-1"
MANIFEST = "manifest.json"
KNOWN, UNKNOWN, HELDOUT = "known", "unknown", "heldout"
VALIDATION, REPLAY, HELDOUT_OTHER = "validation", "replay", "heldout_other"
SPLITS = (KNOWN, UNKNOWN, HELDOUT, VALIDATION, REPLAY, HELDOUT_OTHER)
EXEMPLARS = "exemplars"
_DATASHEET = "README.md"
_FILES = (*(f"{name}.jsonl" for name in (*SPLITS, EXEMPLARS)), _DATASHEET)
# A dataset at a pinned commit: a branch would let the facts change under a published number.
_ON_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class Item:
    """A fact in a bundle.

    Attributes:
        fact: The fact.
        correct: The base's outcome in each labelling run, `1` for right.
        base: The base's outcome in the scoring prompts: `zero_shot` and `fresh`.
    """

    fact: Fact
    correct: str
    base: dict[str, bool]

    def row(self) -> dict[str, Any]:
        """Returns the item as it stands in a bundle's file."""
        return {**self.fact.row(), "correct": self.correct, "base": self.base}


@dataclass(frozen=True, slots=True)
class Bundle:
    """The frozen splits of one base model.

    Attributes:
        path: Directory that it was read from.
        splits: Items by split name.
        exemplars: The fresh configuration of each relation.
        manifest: Base, labels, settings, counts and the hash of every file.
    """

    path: Path
    splits: dict[str, list[Item]]
    exemplars: dict[str, list[Fact]]
    manifest: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Identity of the bundle."""
        return str(self.manifest["sha256"])

    @property
    def matcher(self) -> str:
        """The version of answer matching that judged its base, and judges whatever is asked."""
        return str(self.manifest["labels"]["matcher"])

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yields every item with the name of its split."""
        yield from ((split, item) for split, items in self.splits.items() for item in items)

    def few_shot_prefix(self, fact: Fact) -> str:
        """Returns the answered exemplars that stand before a fact's question, as one text."""
        return exemplar_prefix(self.exemplars[fact.relation])

    def require(self, names: Iterable[str], whose: str) -> None:
        """Raises a UserError if a split has no facts, and says who needs some."""
        if empty := [name for name in names if not self.splits[name]]:
            raise InputError(
                f"{whose} needs {' and '.join(empty)} facts; the bundle has none. Build one with "
                "some."
            )


def write_bundle(
    path: Path,
    splits: dict[str, list[Item]],
    exemplars: dict[str, list[Fact]],
    details: dict[str, Any],
) -> Bundle:
    """Writes a bundle, which appears when it is whole.

    Raises:
        UserError: If the directory holds a bundle already, since a published one is never edited,
            or anything else.
    """
    if (path / MANIFEST).exists():
        raise InputError(f"{path} holds a bundle already. Choose another --output_path.")
    outputs.require_folder(path, "*")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_directory(path) as beside:
        manifest = _write_files(beside, splits, exemplars, details)
    return Bundle(path, splits, exemplars, manifest)


def _write_files(
    path: Path,
    splits: dict[str, list[Item]],
    exemplars: dict[str, list[Fact]],
    details: dict[str, Any],
) -> dict[str, Any]:
    for name in SPLITS:
        files.write_jsonl(path / f"{name}.jsonl", [item.row() for item in splits[name]])
    rows = [
        {"relation": relation, "facts": [fact.row() for fact in facts]}
        for relation, facts in sorted(exemplars.items())
    ]
    files.write_jsonl(path / f"{EXEMPLARS}.jsonl", rows)
    told = {
        "format": BUNDLE_FORMAT,
        **details,
        "counts": {name: len(items) for name, items in splits.items()},
    }
    files.write_atomic(path / _DATASHEET, datasheet(told).encode())
    manifest = {**told, "files": {name: files.sha256_file(path / name) for name in _FILES}}
    manifest["sha256"] = files.sha256_json(manifest)
    files.write_json(path / MANIFEST, manifest)
    return manifest


def locate_bundle(name: str) -> Path:
    """Returns the directory of a bundle: `almanac`, a directory, or `owner/dataset@commit`.

    Raises:
        UserError: If a dataset of the Hub is neither in the cache nor in reach.
    """
    if name == checkpoint.ALMANAC:
        return checkpoint.embedded("bundle")
    named = None if Path(name).is_dir() else _ON_HUB.fullmatch(name)
    return _fetch(named) if named else files.at_home(name)


def _fetch(named: re.Match[str]) -> Path:
    """Finds the directory of a bundle on the Hub, in the cache if it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "repo_id": named["repository"],
        "repo_type": "dataset",
        "revision": named["commit"],
        "allow_patterns": [MANIFEST, "*.jsonl", "*.md"],
    }
    with suppress(LocalEntryNotFoundError):
        cached = Path(snapshot_download(**wanted, local_files_only=True))
        if (cached / MANIFEST).is_file():
            return cached
    try:
        return Path(snapshot_download(**wanted))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The bundle {named[0]} is neither in the cache nor in reach ({reason}). Check the "
            "name, or download the dataset where there is a network and give its directory."
        ) from None


def load_bundle(path: Path) -> Bundle:
    """Reads a bundle after checking every file against its manifest, full content.

    Raises:
        UserError: If there is no bundle, or a file or the manifest was changed.
    """
    manifest = _verified(path)
    splits = {name: list(map(_item, files.read_jsonl(path / f"{name}.jsonl"))) for name in SPLITS}
    exemplars = {
        row["relation"]: list(map(Fact.from_row, row["facts"]))
        for row in files.read_jsonl(path / f"{EXEMPLARS}.jsonl")
    }
    return Bundle(path, splits, exemplars, manifest)


def _item(row: dict[str, Any]) -> Item:
    correct, base = row.pop("correct"), row.pop("base")
    return Item(Fact.from_row(row), correct, base)


def _verified(path: Path) -> dict[str, Any]:
    told = path / MANIFEST
    if not told.is_file():
        raise NotFoundError(f"{path} holds no bundle ({MANIFEST} is missing). Build it first.")
    manifest = files.read_json(told)
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE_FORMAT:
        raise InputError(f"{told} is not of the format {BUNDLE_FORMAT}. Build the bundle again.")
    unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    if files.sha256_json(unsigned) != manifest.get("sha256"):
        raise InputError(f"{told} was changed. Restore the bundle, or build it again.")
    for name in _FILES:
        if not (path / name).is_file() or files.sha256_file(path / name) != manifest["files"][name]:
            raise InputError(f"{path / name} was changed. Restore the bundle, or build it again.")
    return manifest
