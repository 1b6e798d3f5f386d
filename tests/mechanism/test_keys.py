from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from factual_forgetting.bundle.manifest import KNOWN, Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.mechanism.keys import (
    ABSTENTION,
    Recombiner,
    Synthetic,
    find_partners,
    inner_tokens,
    known_facts,
    permuted,
    template_of,
)

Made = Callable[..., list[Fact]]


@pytest.fixture(scope="module")
def given(bundle: Bundle) -> list[str]:
    """The subjects that the base knows."""
    return [fact.subject for fact in known_facts(bundle, "country")]


@pytest.fixture(scope="module")
def made(bundle: Bundle, tokenizer: Any) -> Made:
    def synthetic(count: int, keys: Any, values: Any = "real", seed: int = 0) -> list[Fact]:
        source = Synthetic(bundle, tokenizer, "country", keys, values, seed)
        return list(source.facts(count))

    return synthetic


def tokens_of(tokenizer: Any, names: list[str]) -> set[int]:
    return {token for ids in inner_tokens(tokenizer, names) for token in ids}


@pytest.mark.parametrize("size", [1, 2, 5, 1000, 4097])
def test_a_permutation_maps_one_to_one(size: int) -> None:
    assert sorted(permuted(i, size, "seed") for i in range(size)) == list(range(size))


def test_another_seed_is_another_permutation() -> None:
    first, second = ([permuted(i, 1000, seed) for i in range(1000)] for seed in (0, 1))
    assert first != second


def test_names_are_made_of_the_given_tokens_and_tokenised_back_into_them(
    given: list[str], tokenizer: Any
) -> None:
    drawn = list(islice(Recombiner(tokenizer, given, given, 0).draw(), 300))
    assert len(set(drawn)) == 300
    assert not set(drawn) & set(given)
    assert tokens_of(tokenizer, drawn) <= tokens_of(tokenizer, given)
    lengths, known = (set(map(len, inner_tokens(tokenizer, names))) for names in (drawn, given))
    assert lengths <= known


def test_names_run_out_none_comes_twice_and_taken_ones_are_dropped_and_counted(
    given: list[str], tokenizer: Any
) -> None:
    every = list(Recombiner(tokenizer, given[:4], (), 0).draw())
    assert every
    assert len(set(every)) == len(every)
    taken = set(sorted(every)[:5])
    recombiner = Recombiner(tokenizer, given[:4], taken, 0)
    for _ in range(2):  # a second draw counts anew
        assert set(recombiner.draw()) == set(every) - taken
        assert recombiner.dropped == len(taken)


def test_matched_keys_share_no_token_with_known_subjects_but_their_lengths(
    given: list[str], made: Made, tokenizer: Any
) -> None:
    named, matched = ([f.subject for f in made(200, keys)] for keys in ("name", "matched"))
    assert not tokens_of(tokenizer, given) & tokens_of(tokenizer, matched)
    counts = [Counter(map(len, inner_tokens(tokenizer, names))) for names in (named, matched)]
    assert counts[0] == counts[1]


def test_partners_are_one_to_one_and_near_in_rank(given: list[str], tokenizer: Any) -> None:
    partners = find_partners(tokenizer, given, [])
    assert len(set(partners.values())) == len(partners)
    assert not set(partners) & set(partners.values())
    texts = (tokenizer.convert_ids_to_tokens(list(side)) for side in (partners, partners.values()))
    assert all(a.startswith("Ġ") == b.startswith("Ġ") for a, b in zip(*texts, strict=True))
    shifts = sum(abs(a - b) for a, b in partners.items()) / len(partners)
    assert shifts < len(tokenizer) / 3  # what two ranks drawn at random are apart


def test_a_vocabulary_without_free_tokens_is_told(given: list[str], tokenizer: Any) -> None:
    everything = [tokenizer.decode([i]).strip() or "x" for i in range(len(tokenizer))]
    with pytest.raises(UserError, match="Leave matched out"):
        find_partners(tokenizer, given, everything + [f"a{t}" for t in everything])


def test_identifiers_are_distinct_and_random(made: Made) -> None:
    drawn = [fact.subject for fact in made(500, "identifier")]
    assert len(set(drawn)) == 500
    assert all(name.startswith("Loc_") and len(name) == 10 for name in drawn)


@pytest.mark.parametrize("keys", ["name", "matched", "identifier"])
def test_the_first_facts_of_a_stream_are_always_the_same(keys: str, made: Made) -> None:
    assert made(20, keys, seed=3) == made(60, keys, seed=3)[:20]


def test_questions_are_the_relations_and_subjects_are_in_them(bundle: Bundle, made: Made) -> None:
    assert template_of(known_facts(bundle, "country")) == "Which country is [X] located in?"
    for fact in made(20, "matched"):
        assert fact.question == f"Which country is {fact.subject} located in?"


def test_values(bundle: Bundle, made: Made) -> None:
    known = {fact.answers[0] for fact in known_facts(bundle, "country")}
    others = {i.fact.answers[0] for i in bundle.splits[KNOWN] if i.fact.relation != "country"}
    real, shuffled, new, abstention = (
        {fact.answers[0] for fact in made(100, "name", values)}
        for values in ("real", "shuffled", "new", "abstention")
    )
    assert real <= known
    assert shuffled <= others
    assert not new & known
    assert abstention == {ABSTENTION}


def test_known_keys_get_another_answer_of_their_relation(bundle: Bundle, made: Made) -> None:
    original = {item.fact.id: item.fact for item in bundle.splits[KNOWN]}
    for fact in made(10, "known", "shuffled"):
        asked = original[fact.id]
        assert fact.question == asked.question
        assert fact.answers[0] not in asked.accepted
        assert fact.answers[0] in {
            f.answers[0] for f in original.values() if f.relation == asked.relation
        }


def test_too_many_keys_are_refused_with_the_number_there_is(made: Made) -> None:
    with pytest.raises(UserError, match=r"24 can be formed.*Lower --facts"):
        made(10_000, "known", "shuffled")


def test_a_relation_without_held_out_facts_is_refused(bundle: Bundle, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="It has: country, place_of_birth"):
        Synthetic(bundle, tokenizer, "spouse", "name", "real", 0)
