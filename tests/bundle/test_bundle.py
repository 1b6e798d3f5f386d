import itertools
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.command import export_training_data
from factual_forgetting.bundle.manifest import SPLITS, Bundle, load_bundle
from factual_forgetting.config import parse
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.leaks import find_leaks
from factual_forgetting.slick.labelling import Category, Label, Labels
from small import RELATIONS, make_labels

SIZES = BundleConfig(known=24, unknown=24, heldout=16, validation=4, replay=4)


def test_splits_have_the_sizes_and_categories_asked_for(bundle: Bundle) -> None:
    assert [len(bundle.splits[name]) for name in SPLITS] == [24, 24, 16, 4, 4, 0]
    for split, item in bundle.items():
        assert ("1" not in item.correct) if split == "unknown" else ("0" not in item.correct)
        assert item.fact.split == ("dev" if split == "heldout" else "train")


def test_relations_have_the_same_shares(bundle: Bundle) -> None:
    for name in ("known", "unknown", "heldout"):
        counts = Counter(item.fact.relation for item in bundle.splits[name])
        size = len(bundle.splits[name])
        assert all(abs(counts[relation] / size - 0.5) <= 1 / size for relation in RELATIONS)


def test_no_fact_is_in_two_splits_and_no_subject_leaks(bundle: Bundle) -> None:
    ids = [item.fact.id for _, item in bundle.items()]
    assert len(ids) == len(set(ids))
    held = [item.fact for item in bundle.splits["heldout"]]
    for name in ("known", "unknown", "replay", "validation"):
        assert not find_leaks([item.fact for item in bundle.splits[name]], held)
    subjects = {n: {i.fact.subject for i in items} for n, items in bundle.splits.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        if {one, other} & {"validation", "replay"}:
            assert not subjects[one] & subjects[other]


def planted(facts: list[Fact], held: Fact, training: Fact) -> Labels:
    labels = [label for label in make_labels(facts, None).labels if label.fact.id != held.id]
    outcome = {"zero_shot": True, "fresh": True}
    known = [Label(fact, "1111", Category.HIGHLY_KNOWN, outcome, None) for fact in (held, training)]
    return replace(make_labels(facts, None), labels=[*labels, *known])


@pytest.mark.parametrize("mirrored", [False, True], ids=["subject", "mirrored pair"])
def test_a_heldout_fact_that_training_gives_away_is_dropped(
    facts: list[Fact], tmp_path: Path, mirrored: bool
) -> None:
    held = Fact.make("country", "Planted Town", "Which country is it?", ("Nowhere",), "dev")
    if mirrored:
        training = Fact.make("country", "Elsewhere", "Where?", ("planted  town",), "train")
    else:
        training = Fact.make("place_of_birth", "The Planted Town", "Where?", ("X",), "train")
    clean = build_bundle(planted(facts, held, facts[0]), SIZES, tmp_path / "clean")
    leaky = build_bundle(planted(facts, held, training), SIZES, tmp_path / "leaky")
    dropped = "heldout_dropped_for_overlap"
    assert leaky.manifest[dropped] == clean.manifest[dropped] + 1
    assert held.id not in {item.fact.id for item in leaky.splits["heldout"]}


def test_the_order_of_labels_does_not_matter_and_the_seed_does(
    facts: list[Fact], base: Path, bundle: Bundle, tmp_path: Path
) -> None:
    labels = make_labels(facts, base)
    turned = build_bundle(replace(labels, labels=labels.labels[::-1]), SIZES, tmp_path / "turned")
    assert turned.sha256 == bundle.sha256
    other = build_bundle(labels, SIZES.model_copy(update={"seed": 1}), tmp_path / "other")
    assert {i.fact.id for _, i in bundle.items()} != {i.fact.id for _, i in other.items()}


def test_a_relation_that_is_left_out_is_told(
    facts: list[Fact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = make_labels(facts, None)
    weak = [
        replace(label, category=Category.MAYBE_KNOWN) if label.fact.relation == "country" else label
        for label in labels.labels
    ]
    sizes = SIZES.model_copy(update={"known": 8, "unknown": 8, "heldout": 8})
    build_bundle(replace(labels, labels=weak), sizes, tmp_path / "weak")
    assert "left out of training, below 30% HighlyKnown: country (0%)" in capsys.readouterr().err
    sure = [label for label in labels.labels if label.fact.relation != "country"]
    sure += [p for p in labels.labels if p.category == Category.HIGHLY_KNOWN and p not in sure]
    build_bundle(replace(labels, labels=sure), sizes, tmp_path / "sure")
    told = "left out of training, no facts for one of D_Known, D_Unk and D_Held: country"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"known": 500}, "D_Known needs 500 HighlyKnown train facts; relations country"),
        ({"unknown": 500}, "D_Unk needs 500 Unknown train facts"),
        ({"heldout": 500}, "D_Held needs 500 HighlyKnown dev facts"),
        ({"heldout": 500}, r"hold \d+.*\(classify --quota heldout=9\d\d, or another source\)"),
        ({"replay": 500}, "replay needs 500 HighlyKnown train facts whose subjects"),
        ({"replay": 500}, r"\(classify --quota replay=\d+, or another source\)"),
        ({"min_highly_known": 0.99}, "No relation reaches 99% HighlyKnown"),
        ({"other_relations": ("nothing",)}, "No labels for the relation nothing"),
    ],
)
def test_sizes_that_cannot_be_met_are_errors(
    facts: list[Fact], tmp_path: Path, sizes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_bundle(make_labels(facts, None), SIZES.model_copy(update=sizes), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("size", ["known", "unknown", "heldout"])
def test_a_bundle_without_one_of_its_three_splits_is_refused(size: str) -> None:
    values = {**SIZES.model_dump(), size: 0}
    with pytest.raises(UserError, match=f"key '{size}': Input should be greater than 0"):
        parse(BundleConfig, values, "bundle build")


def test_relations_kept_out_of_training_become_heldout_other(
    facts: list[Fact], tmp_path: Path
) -> None:
    config = BundleConfig(
        known=12, unknown=12, heldout=8, validation=2, replay=2, other_relations=("country",)
    )
    built = build_bundle(make_labels(facts, None), config, tmp_path / "x")
    for name, items in built.splits.items():
        expected = "country" if name == "heldout_other" else "place_of_birth"
        assert {item.fact.relation for item in items} == {expected}


def test_a_bundle_reads_back_as_it_was_written(bundle: Bundle) -> None:
    loaded = load_bundle(bundle.path)
    assert loaded.splits == bundle.splits
    assert loaded.manifest == bundle.manifest


@pytest.mark.parametrize(
    "name", [*(f"{name}.jsonl" for name in SPLITS), "exemplars.jsonl", "README.md", "manifest.json"]
)
def test_a_changed_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(bundle.path, tmp_path / "copy")) / name
    if name == "manifest.json":
        files.write_json(path, {**files.read_json(path), "source": "another"})
    else:
        path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match=f"{name} was changed"):
        load_bundle(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} (was changed|is missing)"):
        load_bundle(path.parent)


def test_a_bundle_is_never_written_over(facts: list[Fact], bundle: Bundle) -> None:
    with pytest.raises(UserError, match="holds a bundle already"):
        build_bundle(make_labels(facts, None), SIZES, bundle.path)
    assert load_bundle(bundle.path).sha256 == bundle.sha256


def test_export_follows_the_text_rule(bundle: Bundle, tmp_path: Path) -> None:
    assert export_training_data(bundle, tmp_path / "d_train.jsonl") == 48
    row = next(iter(files.read_jsonl(tmp_path / "d_train.jsonl")))
    fact = bundle.splits["known"][0].fact
    assert row["prompt"] == f"Q: {fact.question}\nA:"
    assert row["completion"] == f" {fact.answers[0]}"


def test_answers_can_be_matched(facts: list[Fact], tmp_path: Path) -> None:
    labels = make_labels(facts, None)
    plain = build_bundle(labels, SIZES, tmp_path / "plain")
    matched = build_bundle(
        labels, SIZES.model_copy(update={"match_answers": True}), tmp_path / "matched"
    )
    before, after = (b.manifest["answer_distance"]["country"] for b in (plain, matched))
    assert after < before
    ids = [{i.fact.id for i in b.splits["unknown"]} for b in (plain, matched)]
    assert len(ids[1]) == 24
    assert ids[0] != ids[1]
    for name in ("known", "heldout"):
        assert plain.splits[name] == matched.splits[name]


def test_the_datasheet_says_where_the_facts_are_from(facts: list[Fact], tmp_path: Path) -> None:
    source = {"facts": "almanac", "dropped": {"duplicates": 3}, "versions": {"a": "1", "b": "2"}}
    built = build_bundle(replace(make_labels(facts, None), source=source), SIZES, tmp_path / "x")
    text = (built.path / "README.md").read_text()
    assert "almanac (a 1 b 2). Licence: an invented world" in text
    assert "duplicates 3" in text
    assert "| all" in text


def test_popularity_is_kept_and_left_out_where_nobody_knows_it(
    facts: list[Fact], bundle: Bundle, tmp_path: Path
) -> None:
    labels = make_labels(facts, None)
    known = [
        replace(label, fact=replace(label.fact, popularity=n))
        for n, label in enumerate(labels.labels)
    ]
    build_bundle(replace(labels, labels=known), SIZES, tmp_path / "x")
    told = {label.fact.id: label.fact.popularity for label in known}
    read = load_bundle(tmp_path / "x")
    assert all(item.fact.popularity == told[item.fact.id] for _, item in read.items())
    assert b"popularity" not in (bundle.path / "known.jsonl").read_bytes()


def test_the_majority_baseline_is_of_training_facts(bundle: Bundle) -> None:
    baseline = bundle.manifest["majority_baseline"]
    train = [item.fact for name in ("known", "unknown") for item in bundle.splits[name]]
    held = [item.fact for item in bundle.splits["heldout"]]
    right = 0
    for relation in RELATIONS:
        golds = [fact.answers[0] for fact in train if fact.relation == relation]
        answer = baseline["relations"][relation]["answer"]
        assert golds.count(answer) == max(map(golds.count, golds))
        right += sum(fact.relation == relation and fact.answers[0] == answer for fact in held)
    assert baseline["micro"] == right / len(held)
