"""What users are told where nothing else of the bundles' tests tells it."""

from pathlib import Path

import pytest

from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.manifest import KNOWN, Bundle, load_bundle, write_bundle
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.labelling import Category, Label, Labels
from small import make_labels


def labels_of(relation: str, category: Category, split: str, count: int) -> list[Label]:
    correct = "1111" if category is Category.HIGHLY_KNOWN else "0000"
    names = [f"{relation} {split} {correct} {n}" for n in range(count)]
    facts = [Fact.make(relation, f"Of {name}", f"Of {name}?", (name,), split) for name in names]
    return [Label(fact, correct, category, {}, None) for fact in facts]


def test_splits_that_cannot_share_their_relations(tmp_path: Path) -> None:
    known, unknown = Category.HIGHLY_KNOWN, Category.UNKNOWN
    labels = [
        *labels_of("A", known, "train", 18), *labels_of("A", known, "dev", 9),
        *labels_of("A", unknown, "train", 2),
        *labels_of("B", known, "train", 9), *labels_of("B", known, "dev", 2),
        *labels_of("B", unknown, "train", 9),
    ]  # fmt: skip
    manifest = make_labels([], None).manifest
    sizes = BundleConfig(known=10, unknown=10, heldout=10, validation=0, replay=0)
    with pytest.raises(InputError, match=r"allow 40% of the sizes .* raise classify's --quota"):
        build_bundle(Labels(labels, {}, manifest), sizes, tmp_path / "bundle")


def test_a_fact_that_is_there_twice(bundle: Bundle, tmp_path: Path) -> None:
    known = bundle.splits[KNOWN]
    splits = {**bundle.splits, KNOWN: [*known, known[0]]}
    details = {k: v for k, v in bundle.manifest.items() if k not in ("files", "sha256", "format")}
    write_bundle(tmp_path / "bundle", splits, bundle.exemplars, details)
    with pytest.raises(InputError, match=r"holds the fact .* twice\. Build the bundle again"):
        load_bundle(tmp_path / "bundle")
