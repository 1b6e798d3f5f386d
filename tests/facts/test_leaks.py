import unicodedata
from dataclasses import replace
from functools import partial

import pytest
from making import fact

from factual_forgetting.facts.cleaning import clean
from factual_forgetting.facts.leaks import find_leaks

held = partial(fact, split="dev")

TRAIN = [
    fact("P19", "Zoë Brontë-Hall", "Lisbon"),
    fact("P36", "United States", "Washington"),
    fact("P131", "The Old Mill", "Kent"),
    fact("P26", "Ada Quill", "Ben Rook"),
    fact("P50", "Red Water", "Cleo Marsh"),
]
CLEAN = [held("P19", "Dora Finch", "Lisbon"), held("P36", "Norway", "Oslo")]

PLANTED = {
    "case": held("P19", "ZOË BRONTË-HALL", "Lisbon"),
    "accents": held("P19", "Zoe Bronte-Hall", "Lisbon"),
    "article": held("P131", "Old Mill", "Kent"),
    "alias": held("P36", "USA", "Washington"),
    "white space": held("P19", "Zoë  Brontë-Hall ", "Lisbon"),
    "punctuation": held("P19", "Zoë Brontë Hall.", "Lisbon"),
    "swapped split": replace(TRAIN[0], split="dev"),
    "duplicate id": replace(CLEAN[0], id=TRAIN[0].id),
    "template clash": held("P276", "The Old Mill", "England"),
    "Unicode form": held("P19", unicodedata.normalize("NFD", "Zoë Brontë-Hall"), "Lisbon"),
    "mirrored pair": held("P26", "Ben Rook", "Ada Quill"),
}
KINDS = {"duplicate id": "id", "mirrored pair": "object", "swapped split": "id"}


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_leak_is_found(how):
    planted = PLANTED[how]
    leaks = find_leaks(TRAIN, [*CLEAN, planted])
    assert {leak.heldout for leak in leaks} == {planted.id}
    assert KINDS.get(how, "subject") in {leak.kind for leak in leaks}
    assert {leak.train for leak in leaks} <= {known.id for known in TRAIN}


@pytest.mark.parametrize("how", PLANTED)
def test_cleaning_leaves_no_planted_leak(how):
    facts = clean([*TRAIN, *CLEAN, PLANTED[how]]).facts
    train = [known for known in facts if known.split == "train"]
    heldout = [known for known in facts if known.split != "train"]
    assert sorted(heldout, key=repr) == sorted(CLEAN, key=repr)
    assert len(train) == len(TRAIN) - (how == "template clash")  # its golds conflict
    assert not find_leaks(train, heldout)


def test_an_inverse_relation_mirrors_too():
    heldout = held("P800", "Cleo Marsh", "Red Water")
    assert [leak.kind for leak in find_leaks(TRAIN, [heldout])] == ["object"]


def test_an_object_of_an_unrelated_relation_is_no_leak():
    assert not find_leaks(TRAIN, [held("P36", "Kent", "Maidstone")])
    assert not find_leaks(TRAIN, CLEAN)
    assert not find_leaks([], [*CLEAN, *TRAIN])
