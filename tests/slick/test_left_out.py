"""What is left out of a labelling is told and counted; enough is what a bundle needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.engines.engine import Query
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.classify import begin, classify
from factual_forgetting.slick.labelling import LABELS_MANIFEST, SlickConfig, load_labels
from stub import BASE, StubEngine, contents, many_facts
from tiny import WORLD, checkpoint_of

SMALL = SlickConfig(runs=4, shard_size=20)


def test_a_small_relation_is_left_out_and_the_others_are_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = many_facts() + [replace(fact, relation="R7") for fact in many_facts(1, 20)]
    manifest = classify(facts, StubEngine(), SMALL, BASE, tmp_path)
    assert (
        "left out: relation R7 (20 facts), too small to spare exemplars" in capsys.readouterr().err
    )
    assert {label.fact.relation for label in load_labels(tmp_path).labels} == {"R0", "R1"}
    assert manifest["dropped"] == {"relation_too_small": 20}
    assert classify(facts, StubEngine(), SMALL, BASE, tmp_path) == manifest


class Counting(StubEngine):
    """Takes a word for a token."""

    def lengths(self, texts: Sequence[str]) -> list[int] | None:
        return [len(text.split()) for text in texts]


def wordy(words: int) -> list[Fact]:
    return [
        replace(fact, answers=("yes " * words,), aliases=("yes",)) if index % 10 == 0 else fact
        for index, fact in enumerate(many_facts())
    ]


def test_a_gold_longer_than_an_answer_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Counting()
    manifest = classify(wordy(17), engine, SMALL, BASE, tmp_path / "long")
    labels = load_labels(tmp_path / "long").labels
    count = manifest["dropped"]["answer_too_long"]
    assert 20 < count <= 40
    assert all(label.fact.answers == ("yes",) for label in labels)
    assert (
        f"left out: {count} facts whose answer has more than 16 tokens" in capsys.readouterr().err
    )
    fitting = classify(wordy(16), Counting(), SMALL, BASE, tmp_path / "fitting")
    assert "dropped" not in fitting
    assert sum(fitting["categories"].values()) == len(labels) + count


def test_what_is_left_out_survives_a_kill_between_rounds(tmp_path: Path) -> None:
    classify(wordy(17), Counting(), SMALL, BASE, tmp_path / "whole")

    def stop(call: int) -> None:
        if call == 2:
            raise KeyboardInterrupt

    cut = begin(wordy(17), "stub", SMALL, BASE, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.ask(Counting(stop), cut.shards)
    classify(wordy(17), Counting(), SMALL, BASE, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_engines_count_the_tokens_of_the_bases_own_tokenizer() -> None:
    path, texts = checkpoint_of(), [fact.answers[0] for fact in WORLD[:5]]
    model, tokenizer = load_causal_lm(path, "float32", "cpu")
    expected = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert PrefixEngine(model, tokenizer).lengths(texts) == expected
    assert LMEvalEngine("hf", {"pretrained": str(path)}, "8", "cpu").lengths(texts) == expected
    assert LMEvalEngine("dummy", {}, "8", "cpu").lengths(texts) is None


def test_facts_of_the_test_split_are_not_asked(tmp_path: Path) -> None:
    facts = [
        replace(fact, split="test") if index % 5 == 0 else fact
        for index, fact in enumerate(many_facts())
    ]
    classify(facts, StubEngine(), SMALL, BASE, tmp_path)
    assert {label.fact.split for label in load_labels(tmp_path).labels} == {"train", "dev"}


class Uneven(StubEngine):
    """Knows little of one relation: its facts are right by chance, and pass no filter."""

    def chance(self, query: Query) -> float:
        often = super().chance(query)
        return min(often, 0.8) if "in R0" in query.text.split("Q: ")[-1] else often


def relations(subjects: int) -> list[Fact]:
    """Four relations of 400 facts; of fewer subjects, some have facts in several."""
    return [
        Fact.make(f"R{r}", f"S{(400 * r + 7 * n) % subjects}", f"What of {n} in R{r}?", ("yes",))
        for r in range(4)
        for n in range(400)
    ]


@pytest.mark.parametrize("subjects", [1600, 1100])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bundle_of_the_sizes_of_a_quota_can_be_built(
    subjects: int, seed: int, tmp_path: Path
) -> None:
    facts = relations(subjects)
    sizes = {"known": 60, "unknown": 60, "heldout": 20, "validation": 30, "replay": 30}
    settings = SMALL.model_copy(update={"retire": True, "quota": sizes})
    settings = settings.model_copy(update={"seed": seed})
    classify(facts, Uneven(), settings, BASE, tmp_path / "labels")
    labels = load_labels(tmp_path / "labels")
    assert len(labels.labels) < 0.9 * len(facts)
    bundle = build_bundle(labels, BundleConfig(**sizes, seed=seed), tmp_path / "bundle")
    assert {name: bundle.manifest["counts"][name] for name in sizes} == sizes


def test_labellings_from_before_name_no_new_setting(tmp_path: Path) -> None:
    classify(many_facts(), StubEngine(), SMALL, BASE, tmp_path)
    manifest = files.read_json(tmp_path / LABELS_MANIFEST)
    assert "min_highly_known" not in manifest["settings"]
    assert "dropped" not in manifest
    lower = SMALL.model_copy(update={"min_highly_known": 0.1})
    assert lower.model_dump()["min_highly_known"] == 0.1
