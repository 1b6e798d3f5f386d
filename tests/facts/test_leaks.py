import unicodedata
from dataclasses import replace

import pytest

from factual_forgetting.facts.cleaning import clean
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.leaks import find_leaks

TEMPLATES = {
    "P19": "Where was [X] born?",
    "P26": "Who is [X] married to?",
    "P36": "What is the capital of [X]?",
    "P40": "Who is [X]'s child?",
    "P131": "Where is [X] located?",
    "P276": "Where is [X] located?",
    "P50": "Who is the author of [X]?",
    "P800": "What is [X] famous for?",
}


def fact(relation, subject, answer, split="train"):
    question = TEMPLATES[relation].replace("[X]", subject)
    return Fact.make(relation, subject, question, (answer,), split)


TRAIN = [
    fact("P19", "Zoë Brontë-Hall", "Lisbon"),
    fact("P36", "United States", "Washington"),
    fact("P131", "The Old Mill", "Kent"),
    fact("P26", "Ada Quill", "Ben Rook"),
    fact("P50", "Red Water", "Cleo Marsh"),
]
CLEAN = [fact("P19", "Dora Finch", "Lisbon", "dev"), fact("P36", "Norway", "Oslo", "dev")]

PLANTED = {
    "case": fact("P19", "ZOË BRONTË-HALL", "Lisbon", "dev"),
    "accents": fact("P19", "Zoe Bronte-Hall", "Lisbon", "dev"),
    "article": fact("P131", "Old Mill", "Kent", "dev"),
    "alias": fact("P36", "USA", "Washington", "dev"),
    "white space": fact("P19", "Zoë  Brontë-Hall ", "Lisbon", "dev"),
    "punctuation": fact("P19", "Zoë Brontë Hall.", "Lisbon", "dev"),
    "swapped split": replace(TRAIN[0], split="dev"),
    "duplicate id": replace(CLEAN[0], id=TRAIN[0].id),
    "template clash": fact("P276", "The Old Mill", "England", "dev"),
    "Unicode form": fact("P19", unicodedata.normalize("NFD", "Zoë Brontë-Hall"), "Lisbon", "dev"),
    "mirrored pair": fact("P26", "Ben Rook", "Ada Quill", "dev"),
}
KINDS = {"duplicate id": "id", "mirrored pair": "object", "swapped split": "id"}


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_leak_is_found(how):
    planted = PLANTED[how]
    leaks = find_leaks(TRAIN, [*CLEAN, planted])
    assert {leak.heldout for leak in leaks} == {planted.id}
    assert KINDS.get(how, "subject") in {leak.kind for leak in leaks}
    assert {leak.train for leak in leaks} <= {known.id for known in TRAIN}


def test_all_eleven_planted_leaks_are_found_together():
    assert len(PLANTED) == 11
    leaks = find_leaks(TRAIN, [*CLEAN, *PLANTED.values()])
    assert {leak.heldout for leak in leaks} == {planted.id for planted in PLANTED.values()}


@pytest.mark.parametrize("how", PLANTED)
def test_cleaning_leaves_no_planted_leak(how):
    facts = clean([*TRAIN, *CLEAN, PLANTED[how]]).facts
    train = [known for known in facts if known.split == "train"]
    heldout = [known for known in facts if known.split != "train"]
    assert sorted(heldout, key=repr) == sorted(CLEAN, key=repr)
    assert len(train) == len(TRAIN) - (how == "template clash")  # its golds conflict
    assert not find_leaks(train, heldout)


def test_an_inverse_relation_mirrors_too():
    heldout = fact("P800", "Cleo Marsh", "Red Water", "dev")
    assert [leak.kind for leak in find_leaks(TRAIN, [heldout])] == ["object"]


def test_an_object_of_an_unrelated_relation_is_no_leak():
    assert not find_leaks(TRAIN, [fact("P36", "Kent", "Maidstone", "dev")])
    assert not find_leaks(TRAIN, CLEAN)
    assert not find_leaks([], [*CLEAN, *TRAIN])
