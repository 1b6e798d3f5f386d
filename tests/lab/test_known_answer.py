"""What the embedded base was taught is what SLiCK says that it knows."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest

from factual_forgetting import checkpoint, files
from factual_forgetting.config import load_yaml, parse
from factual_forgetting.engines.models import load_causal_lm
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.facts.sources import load_facts
from factual_forgetting.lab.command import ALMANAC_RECIPE
from factual_forgetting.lab.pretrain import EXPOSURES_FILE, PretrainConfig, pretrain_base
from factual_forgetting.slick.classify import classify
from factual_forgetting.slick.labelling import Category, Label, SlickConfig, load_labels

# Stated before the base was made: a fact told this often is HighlyKnown.
TOLD_OFTEN = 64
FEW_ANSWERS = 200


def label(base: Path, output: Path, relations: tuple[str, ...] = ()) -> list[Label]:
    model, tokenizer = load_causal_lm(base)
    classify(
        load_facts("almanac", relations),
        PrefixEngine(model, tokenizer),
        SlickConfig(),
        checkpoint.identity(str(base)),
        output,
    )
    return load_labels(output).labels


@pytest.fixture(scope="module")
def told() -> dict[str, int]:
    rows = files.read_jsonl(checkpoint.embedded("base") / EXPOSURES_FILE)
    return {row["id"]: row["exposures"] for row in rows}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> list[Label]:
    return label(checkpoint.embedded("base"), tmp_path_factory.mktemp("labels") / "almanac")


@pytest.mark.slow
def test_facts_told_often_are_highly_known_and_facts_never_told_are_unknown(
    labels: list[Label], told: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, set[str]] = {}
    for fact in load_facts("almanac"):
        answers.setdefault(fact.relation, set()).add(fact.answers[0])
    many = {relation for relation, found in answers.items() if len(found) >= FEW_ANSWERS}
    often = Counter(p.category for p in labels if told[p.fact.id] >= TOLD_OFTEN)
    never = Counter(p.category for p in labels if told[p.fact.id] == 0 and p.fact.relation in many)
    with capsys.disabled():
        print(f"\ntold {TOLD_OFTEN} times or more: {dict(often)}")
        print(f"never told, relations with {FEW_ANSWERS} answers or more: {dict(never)}")
    assert often[Category.HIGHLY_KNOWN] == often.total() > 300
    assert never[Category.UNKNOWN] >= 0.98 * never.total() > 300


@pytest.mark.slow
def test_the_world_holds_enough_of_every_category(labels: list[Label]) -> None:
    counts = Counter(label.category for label in labels)
    held = sum(p.category == Category.HIGHLY_KNOWN and p.fact.split == "dev" for p in labels)
    assert counts[Category.HIGHLY_KNOWN] >= 1500
    assert held >= 500
    assert counts[Category.UNKNOWN] >= 800
    assert counts[Category.MAYBE_KNOWN] > 0


@pytest.mark.slow
def test_a_few_valued_relation_is_guessed_no_better_than_without_its_facts(
    labels: list[Label],
    told: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`country` has 40 answers, so guesses hit; a base that knows none of it guesses as well."""
    facts = load_facts("almanac")
    # The control is told of every other relation, and of countries under other towns' names.
    rng = random.Random(0)
    towns = [fact for fact in facts if fact.relation == "country"]
    shuffled = rng.sample(towns, len(towns))
    strangers = [
        dataclasses.replace(fact, answers=other.answers)
        for fact, other in zip(towns, shuffled, strict=True)
    ]
    never = {fact.id for fact in towns if told[fact.id] == 0}
    taught = [fact for fact in facts if fact.relation != "country"] + strangers
    recipe = parse(PretrainConfig, load_yaml(ALMANAC_RECIPE), "recipe")
    pretrain_base(taught, recipe, tmp_path / "control", told)
    control = label(tmp_path / "control", tmp_path / "labels", ("country",))

    def exceptions(found: list[Label]) -> tuple[int, int]:
        asked = [p for p in found if p.fact.id in never]
        return sum(p.category != Category.UNKNOWN for p in asked), len(asked)

    base, without = exceptions(labels), exceptions(control)
    with capsys.disabled():
        print(f"\ncountry, never told: not Unknown {base} with the base, {without} without")
    # Two binomial standard errors of the difference are the room that chance needs.
    rate = (base[0] + without[0]) / (base[1] + without[1])
    room = 2 * (rate * (1 - rate) * (1 / base[1] + 1 / without[1])) ** 0.5
    assert base[0] / base[1] <= without[0] / without[1] + room
