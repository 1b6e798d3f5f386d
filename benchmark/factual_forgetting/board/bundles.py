"""The official bundle of each base, and what the board tells of a bundle beside its records."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from factual_forgetting import checkpoint, files
from factual_forgetting.board.form import BaseOf, Hash, Metric, Name, slug
from factual_forgetting.bundle import manifest as m
from factual_forgetting.bundle.manifest import MANIFEST, Bundle
from factual_forgetting.config import Config, parse
from factual_forgetting.errors import InputError
from factual_forgetting.facts.account import majority_baseline
from factual_forgetting.scoring.metrics import accuracy
from factual_forgetting.scoring.statistics import row_of
from factual_forgetting.scoring.styles import STYLES
from factual_forgetting.slick.labelling import FRESH, ZERO_SHOT

_REFERENCE, _SOURCE = "reference.json", "source.json"


class _Source(Config):
    """Where the facts of an official bundle are, if neither beside its manifest nor embedded."""

    dataset: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+@[0-9a-f]{40}$")]


class ReferenceRows(Config, strict=True):
    """Reference rows and marks of a bundle.

    Attributes:
        sha256: Identity of the bundle.
        name: Base and version of an official bundle; None for any other.
        base: Its base model.
        counts: Facts by split.
        base_stability: Stability of the base itself, in the same prompt.
        base_macro: The same as a mean over relations.
        base_right: Whether the base gets each fact of D_Held right, in order: `1` or `0`.
        few_shot_stability: Stability of the base itself, few-shot.
        few_shot_right: As `base_right`, few-shot.
        majority_micro: Share of D_Held that the majority answer of each relation gets right.
        majority_macro: The same as a mean over relations.
        heldout_dropped_for_overlap: Candidates of D_Held that training speaks of, left out.
        heldout_subjects_as_training_objects: D_Held's facts whose subject is an answer in training.
    """

    sha256: Hash
    name: Name | None = None
    base: BaseOf
    counts: dict[str, int]
    base_stability: Metric
    base_macro: float | None
    base_right: str | None = None
    few_shot_stability: Metric = None
    few_shot_right: str | None = None
    majority_micro: float | None
    majority_macro: float | None
    heldout_dropped_for_overlap: int | None
    heldout_subjects_as_training_objects: int | None

    def right_in(self, style: str) -> str | None:
        """Returns what the base gets right in a style's prompt, as `base_right` has it."""
        return self.base_right if STYLES[style].outcome == ZERO_SHOT else self.few_shot_right


def reference_of(bundle: Bundle, name: str | None = None) -> ReferenceRows:
    """Computes the reference rows of a bundle."""
    held, manifest = bundle.splits[m.HELDOUT], bundle.manifest
    train = [item.fact for split in (m.KNOWN, m.UNKNOWN) for item in bundle.splits[split]]
    majority = majority_baseline(train, [item.fact for item in held])
    base, few_shot = ({i.fact.id: i.base[key] for i in held} for key in (ZERO_SHOT, FRESH))
    macro = accuracy(held, base, macro=True)
    overlap = ("heldout_dropped_for_overlap", "heldout_subjects_as_training_objects")
    told = {
        "sha256": bundle.sha256,
        "name": name,
        "base": {key: manifest["base"].get(key) for key in BaseOf.model_fields},
        "counts": {split: len(items) for split, items in bundle.splits.items()},
        "base_stability": row_of(accuracy(held, base)),
        "base_macro": macro.value if macro else None,
        "base_right": "".join("01"[right] for right in base.values()),
        "few_shot_stability": row_of(accuracy(held, few_shot)),
        "few_shot_right": "".join("01"[right] for right in few_shot.values()),
        "majority_micro": majority["micro"],
        "majority_macro": majority["macro"],
        **{key: manifest.get(key) for key in overlap},
    }
    return parse(ReferenceRows, told, str(bundle.path))


def make_official(bundle: Bundle, folder: Path, version: str, dataset: str | None = None) -> Path:
    """Names a bundle the official one of its base, and returns the path of its manifest there.

    Args:
        bundle: What is copied is its manifest, beside its reference rows; its facts too, unless
            they are embedded or in a dataset.
        folder: `bundles/` of the leaderboard.
        version: Such as `v1`; a published version is never edited.
        dataset: `owner/dataset@commit` of the Hub where its facts are.

    Raises:
        UserError: If the version names another bundle already.
    """
    name = f"{slug(bundle.manifest['base']['pretrained'] or 'base')}/{slug(version)}"
    path = folder / name / MANIFEST
    if path.exists() and files.read_json(path) != bundle.manifest:
        raise InputError(f"{path} names another bundle. A new bundle needs a new version.")
    if dataset:
        source = parse(_Source, {"dataset": dataset}, "dataset").model_dump()
        files.write_json(path.with_name(_SOURCE), source)
    elif bundle.sha256 not in bundles_at_hand([]):
        path.parent.mkdir(parents=True, exist_ok=True)
        for copied in bundle.manifest["files"]:
            shutil.copyfile(bundle.path / copied, path.with_name(copied))
    files.write_json(path, bundle.manifest)
    files.write_json(path.with_name(_REFERENCE), reference_of(bundle, name).model_dump(mode="json"))
    return path


def official(folder: Path) -> dict[str, ReferenceRows]:
    """Reads the official bundles under `bundles/` of a leaderboard, by their hash.

    Raises:
        UserError: If a manifest and its reference rows don't agree.
    """
    found = {}
    for path in sorted(folder.glob(f"*/*/{MANIFEST}")):
        sha256 = files.read_object(path).get("sha256")
        beside = path.with_name(_REFERENCE)
        reference = parse(ReferenceRows, files.read_json(beside), str(beside))
        name = f"{path.parent.parent.name}/{path.parent.name}"
        if (reference.sha256, reference.name) != (sha256, name):
            raise InputError(f"{beside} is not of the bundle in {path}. Make it official again.")
        if reference.sha256 in found:
            raise InputError(f"{beside} is of a bundle that has a name already. Remove it.")
        found[reference.sha256] = reference
    return found


def sources(folder: Path) -> dict[str, str]:
    """Says where each official bundle is, as `--bundle` takes it, by its hash."""
    found = {}
    for sha256, reference in official(folder).items():
        home = folder / str(reference.name)
        if (home / _SOURCE).is_file():
            told = files.read_json(home / _SOURCE)
            found[sha256] = parse(_Source, told, str(home / _SOURCE)).dataset
        else:
            beside = all((home / f"{split}.jsonl").is_file() for split in m.SPLITS)
            found[sha256] = str(home) if beside else checkpoint.ALMANAC
    return found


def fetch_official(folder: Path, at_hand: Collection[str]) -> dict[str, Bundle]:
    """Loads the official bundles that aren't at hand, from the Hub if they are there.

    Raises:
        UserError: If one is out of reach, or what is found is another bundle.
    """
    found = {}
    for sha256, place in sources(folder).items():
        if sha256 in at_hand:
            continue
        found[sha256] = m.load_bundle(m.locate_bundle(place))
        if found[sha256].sha256 != sha256:
            raise InputError(
                f"{place} holds another bundle than {sha256[:12]}. Correct its source."
            )
    return found


def bundles_at_hand(names: Sequence[str]) -> dict[str, Bundle]:
    """Loads some bundles, named as `locate_bundle` takes them, and the embedded one, by hash."""
    embedded = checkpoint.embedded("bundle")
    shipped = [embedded] if (embedded / MANIFEST).is_file() else []
    places = [*map(m.locate_bundle, names), *shipped]
    return {bundle.sha256: bundle for bundle in map(m.load_bundle, places)}


def references_for(records: Path, bundles: dict[str, Bundle]) -> dict[str, ReferenceRows]:
    """Returns the reference rows of all bundles that are known where records lie."""
    computed = {sha256: reference_of(bundle) for sha256, bundle in bundles.items()}
    return computed | official(records.parent / "bundles")
