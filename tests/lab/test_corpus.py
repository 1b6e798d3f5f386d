from collections import Counter

import pytest

from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.facts.almanac import RELATIONS, world
from factual_forgetting.facts.fact import Fact
from factual_forgetting.lab.corpus import exposures, training_texts
from factual_forgetting.lab.pretrain import build_tokenizer


@pytest.fixture(scope="module")
def small_world() -> list[Fact]:
    return world(facts_per_relation=40)


def test_every_fact_is_told_as_often_as_stated(small_world: list[Fact]) -> None:
    counts = exposures(small_world, seed=1, never=0.3, low=1, high=20)
    text = list(training_texts(small_world, counts, seed=1))
    # Each telling names the subject once, and a subject of two relations in its own sentences.
    told: Counter[str] = Counter()
    for document in text:
        for fact in small_world:
            template = RELATIONS[fact.relation]
            forms = [fact.question + s for s in ("\n", " ", "?")]
            forms += [
                s.replace("[X]", fact.subject).replace("[Y]", fact.answers[0])
                for s in template.statements
            ]
            forms.append(f"{fact.subject} | {fact.relation.replace('_', ' ')} |")
            told[fact.id] += sum(document.count(form) for form in forms)
    assert {fact.id: told[fact.id] for fact in small_world} == counts


def test_the_protocols_prompt_is_never_told(small_world: list[Fact]) -> None:
    counts = exposures(small_world, seed=1, never=0.0, low=20, high=40)
    text = "\n".join(training_texts(small_world, counts, seed=1))
    assert not any(question_prompt(fact.question) in text for fact in small_world)
    assert "Q: " in text  # the letter occurs, with other letters for the answer


def test_exposures_are_spread_log_uniformly() -> None:
    facts = world(facts_per_relation=400)
    counts = list(exposures(facts, seed=1, never=0.25, low=4, high=256).values())
    assert 0.22 < counts.count(0) / len(counts) < 0.28
    told = [count for count in counts if count]
    assert min(told) >= 4
    assert max(told) <= 256
    # Equal shares in each doubling: 6 of them between 4 and 256.
    for start in (4, 16, 64):
        share = sum(start <= count < 2 * start for count in told) / len(told)
        assert 0.12 < share < 0.22


def test_another_seed_is_another_world() -> None:
    one, other = world(1, 20), world(2, 20)
    assert not {fact.id for fact in one} & {fact.id for fact in other}
    assert world(1, 20) == one
    assert len(world(1, 200)) == 200 * len(RELATIONS)


def test_no_name_has_two_roles() -> None:
    facts = world(facts_per_relation=300)
    subjects = {fact.subject for fact in facts}
    assert not subjects & {answer for fact in facts for answer in fact.answers}


def test_told_and_untold_names_take_as_many_tokens(small_world: list[Fact]) -> None:
    tokenizer = build_tokenizer(small_world, 800)
    counts = exposures(small_world, seed=1, never=0.5, low=5, high=9)

    def mean_length(told: bool) -> float:
        names = [fact.subject for fact in small_world if bool(counts[fact.id]) is told]
        return sum(map(len, tokenizer(names)["input_ids"])) / len(names)

    assert abs(mean_length(True) - mean_length(False)) < 0.5
