from collections import Counter
from itertools import islice
from typing import Any

import pytest

from factual_forgetting.bundle.manifest import KNOWN, Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.mechanism.keys import (
    ABSTENTION,
    Recombiner,
    Synthetic,
    find_partners,
    known_facts,
    permuted,
    template_of,
)


def tokens(tokenizer: Any, name: str) -> list[int]:
    return list(tokenizer(f" {name}", add_special_tokens=False)["input_ids"])


def subjects(bundle: Bundle) -> list[str]:
    return [fact.subject for fact in known_facts(bundle, "country")]


@pytest.mark.parametrize("size", [1, 2, 5, 1000, 4097])
def test_a_permutation_maps_one_to_one(size: int) -> None:
    assert sorted(permuted(i, size, "seed") for i in range(size)) == list(range(size))


def test_another_seed_is_another_permutation() -> None:
    first, second = ([permuted(i, 1000, seed) for i in range(1000)] for seed in (0, 1))
    assert first != second


def test_names_are_made_of_the_given_tokens_and_tokenised_back_into_them(
    bundle: Bundle, tokenizer: Any
) -> None:
    given = subjects(bundle)
    own = {token for name in given for token in tokens(tokenizer, name)}
    drawn = list(islice(Recombiner(tokenizer, given, given, 0).draw(), 300))
    assert len(set(drawn)) == 300
    assert not set(drawn) & set(given)
    assert all(set(tokens(tokenizer, name)) <= own for name in drawn)
    lengths = {len(tokens(tokenizer, name)) for name in given}
    assert {len(tokens(tokenizer, name)) for name in drawn} <= lengths


def test_names_run_out_and_none_comes_twice(tokenizer: Any, bundle: Bundle) -> None:
    drawn = list(Recombiner(tokenizer, subjects(bundle)[:3], (), 0).draw())
    assert drawn
    assert len(set(drawn)) == len(drawn)


def test_taken_names_are_dropped_and_counted(tokenizer: Any, bundle: Bundle) -> None:
    given = subjects(bundle)
    every = set(Recombiner(tokenizer, given[:4], (), 0).draw())
    taken = set(sorted(every)[:5])
    recombiner = Recombiner(tokenizer, given[:4], taken, 0)
    assert set(recombiner.draw()) == every - taken
    assert recombiner.dropped == len(taken)


def test_matched_keys_share_no_token_with_known_subjects_but_their_lengths(
    bundle: Bundle, tokenizer: Any
) -> None:
    given = subjects(bundle)
    own = {token for name in given for token in tokens(tokenizer, name)}
    named, matched = (
        [f.subject for f in Synthetic(bundle, tokenizer, "country", keys, "real", 0).facts(200)]
        for keys in ("name", "matched")
    )
    assert not own & {token for name in matched for token in tokens(tokenizer, name)}
    counts = [Counter(len(tokens(tokenizer, n)) for n in names) for names in (named, matched)]
    assert counts[0] == counts[1]


def test_partners_are_one_to_one_and_near_in_rank(bundle: Bundle, tokenizer: Any) -> None:
    partners = find_partners(tokenizer, subjects(bundle), [])
    assert len(set(partners.values())) == len(partners)
    assert not set(partners) & set(partners.values())
    texts = (
        tokenizer.convert_ids_to_tokens(list(partners)),
        tokenizer.convert_ids_to_tokens(list(partners.values())),
    )
    assert all(a.startswith("Ġ") == b.startswith("Ġ") for a, b in zip(*texts, strict=True))
    shifts = sum(abs(a - b) for a, b in partners.items()) / len(partners)
    assert shifts < len(tokenizer) / 3  # what two ranks drawn at random are apart


def test_a_vocabulary_without_free_tokens_is_told(bundle: Bundle, tokenizer: Any) -> None:
    everything = [tokenizer.decode([i]).strip() or "x" for i in range(len(tokenizer))]
    with pytest.raises(UserError, match="Leave matched out"):
        find_partners(tokenizer, subjects(bundle), everything + [f"a{t}" for t in everything])


def test_identifiers_are_distinct_and_random(bundle: Bundle, tokenizer: Any) -> None:
    synthetic = Synthetic(bundle, tokenizer, "country", "identifier", "real", 0)
    drawn = [fact.subject for fact in synthetic.facts(500)]
    assert len(set(drawn)) == 500
    assert all(name.startswith("Loc_") and len(name) == 10 for name in drawn)


def test_the_first_facts_of_a_stream_are_always_the_same(bundle: Bundle, tokenizer: Any) -> None:
    for keys in ("name", "matched", "identifier"):
        short, long = (
            list(Synthetic(bundle, tokenizer, "country", keys, "real", 3).facts(n))
            for n in (20, 60)
        )
        assert short == long[:20]


def test_questions_are_the_relations_and_subjects_are_in_them(
    bundle: Bundle, tokenizer: Any
) -> None:
    assert template_of(known_facts(bundle, "country")) == "Which country is [X] located in?"
    for fact in Synthetic(bundle, tokenizer, "country", "matched", "real", 0).facts(20):
        assert fact.question == f"Which country is {fact.subject} located in?"


def test_values(bundle: Bundle, tokenizer: Any) -> None:
    known = {fact.answers[0] for fact in known_facts(bundle, "country")}
    answers = {
        values: {
            fact.answers[0]
            for fact in Synthetic(bundle, tokenizer, "country", "name", values, 0).facts(100)
        }
        for values in ("real", "shuffled", "new", "abstention")
    }
    assert answers["real"] <= known
    assert not answers["new"] & known
    assert answers["abstention"] == {ABSTENTION}
    others = {i.fact.answers[0] for i in bundle.splits[KNOWN] if i.fact.relation != "country"}
    assert answers["shuffled"] <= others


def test_known_keys_get_another_answer_of_their_relation(bundle: Bundle, tokenizer: Any) -> None:
    original = {item.fact.id: item.fact for item in bundle.splits[KNOWN]}
    swapped = list(Synthetic(bundle, tokenizer, "country", "known", "shuffled", 0).facts(10))
    by_relation = {
        r: {f.answers[0] for f in original.values() if f.relation == r} for r in ("country",)
    }
    for fact in swapped:
        assert fact.question == original[fact.id].question
        assert fact.answers[0] not in original[fact.id].accepted
        if fact.relation == "country":
            assert fact.answers[0] in by_relation["country"]


def test_too_many_keys_are_refused_with_the_number_there_is(bundle: Bundle, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"24 can be formed|\d+ can be formed.*Lower --facts"):
        list(Synthetic(bundle, tokenizer, "country", "known", "shuffled", 0).facts(10_000))


def test_a_relation_without_held_out_facts_is_refused(bundle: Bundle, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="It has: country, place_of_birth"):
        Synthetic(bundle, tokenizer, "spouse", "name", "real", 0)
