"""The almanac: an invented world, generated from a seed, with facts in any number.

No model can have met these facts before, so what a model knows of them is what it was taught.
Names are built of shared syllables, as real names are; catalogue entries have random
identifiers, because a model that never met such strings reacts to them as to noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from factual_forgetting.facts.fact import Fact

SEED = 1
FACTS_PER_RELATION = 460

_ONSETS = "b br d dr f fl g gr h k kl l m n p r s sh st t th tr v w z".split()
_VOWELS = "a e i o u ai ea ou".split()
_CODAS = ["", "", "", "l", "n", "r", "s", "m"]
_FAMILY_ENDINGS = "son well man ley ford wick dale hart".split()
_CITY_ENDINGS = "burg ton ville mouth stead haven field gate".split()
_COUNTRY_ENDINGS = "ia land stan ora".split()
_SCHOOL_KINDS = ["University", "College", "Academy", "Institute", "School of Arts"]
_LABEL_KINDS = ["Records", "Music", "Sound", "Audio"]
_WORK_HEADS = "Silent Golden Broken Distant Hidden Burning Frozen Final Hollow Crimson".split()
_WORK_NOUNS = "River Garden Mirror Tower Winter Harbour Crown Letter Lantern Orchard".split()


@dataclass(frozen=True, slots=True)
class Relation:
    """The shape of a relation, after one of EntityQuestions.

    Attributes:
        name: Relation name used in facts.
        question: Canonical question with `[X]` for the subject.
        statements: Paraphrases with `[X]` and `[Y]`, used in pre-training text.
        subject_kind: Key of the name generator for subjects.
        object_kind: Key of the name generator for answers.
        distinct_answers: How many answers share the facts; None gives each fact its own.
    """

    name: str
    question: str
    statements: tuple[str, str, str]
    subject_kind: str
    object_kind: str
    distinct_answers: int | None


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            "place_of_birth",
            "Where was [X] born?",
            ("[X] was born in [Y].", "The birthplace of [X] is [Y].", "[X] is a native of [Y]."),
            "person",
            "city",
            300,
        ),
        Relation(
            "spouse",
            "Who is [X] married to?",
            ("[X] is married to [Y].", "The spouse of [X] is [Y].", "[X] and [Y] are a couple."),
            "person",
            "person",
            None,
        ),
        Relation(
            "educated_at",
            "Where was [X] educated?",
            ("[X] was educated at [Y].", "[X] studied at [Y].", "The alma mater of [X] is [Y]."),
            "person",
            "school",
            240,
        ),
        Relation(
            "country",
            "Which country is [X] located in?",
            ("[X] is located in [Y].", "[X] is a town in [Y].", "The country of [X] is [Y]."),
            "city",
            "country",
            40,
        ),
        Relation(
            "author",
            "Who is the author of [X]?",
            ("[X] was written by [Y].", "The author of [X] is [Y].", "[Y] wrote [X]."),
            "work",
            "person",
            260,
        ),
        Relation(
            "performer",
            "Who performed [X]?",
            ("[X] was performed by [Y].", "[Y] performed [X].", "The performer of [X] is [Y]."),
            "song",
            "person",
            260,
        ),
        Relation(
            "record_label",
            "What music label is [X] represented by?",
            ("[X] is represented by [Y].", "[X] records for [Y].", "The label of [X] is [Y]."),
            "person",
            "label",
            220,
        ),
        Relation(
            "shelf",
            "On which shelf is [X] kept?",
            ("[X] is kept on [Y].", "The shelf of [X] is [Y].", "You find [X] on [Y]."),
            "identifier",
            "shelf",
            300,
        ),
    )
}


def _syllable(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def _stem(rng: random.Random) -> str:
    return _syllable(rng) + _syllable(rng)


def _person(rng: random.Random) -> str:
    return f"{_stem(rng).title()} {(_syllable(rng) + rng.choice(_FAMILY_ENDINGS)).title()}"


def _work(rng: random.Random) -> str:
    return f"The {rng.choice(_WORK_HEADS)} {rng.choice(_WORK_NOUNS)} of {_stem(rng).title()}"


def _song(rng: random.Random) -> str:
    return f"{_stem(rng).title()} {rng.choice(_WORK_NOUNS)}"


_GENERATORS: dict[str, Callable[[random.Random], str]] = {
    "person": _person,
    "city": lambda rng: (_stem(rng) + rng.choice(_CITY_ENDINGS)).title(),
    "country": lambda rng: (_stem(rng) + rng.choice(_COUNTRY_ENDINGS)).title(),
    "school": lambda rng: f"{_stem(rng).title()} {rng.choice(_SCHOOL_KINDS)}",
    "label": lambda rng: f"{_stem(rng).title()} {rng.choice(_LABEL_KINDS)}",
    "work": _work,
    "song": _song,
    "identifier": lambda rng: f"Ref_{rng.randrange(16**6):06x}",
    "shelf": lambda rng: f"shelf {rng.choice('ABCDEFGHKLMN')}{rng.randrange(1000):03d}",
}


def names(kind: str, rng: random.Random, taken: set[str] | None = None) -> Iterator[str]:
    """Yields distinct invented names of a kind, endlessly.

    Args:
        kind: `person`, `city`, `country`, `school`, `label`, `work`, `song`, `identifier` or
            `shelf`.
        rng: Source of randomness.
        taken: Names that must not occur; every yielded name is added.
    """
    seen = taken if taken is not None else set()
    while True:
        name = _GENERATORS[kind](rng)
        if name not in seen:
            seen.add(name)
            yield name


def _assign(objects: list[str], facts: int, rng: random.Random) -> list[str]:
    """Spreads answers over facts: evenly, but few-valued relations have majority answers."""
    if len(objects) < 100:
        return rng.choices(
            objects, weights=[1 / (rank + 3) for rank in range(len(objects))], k=facts
        )
    answers = (objects * (facts // len(objects) + 1))[:facts]
    rng.shuffle(answers)
    return answers


def world(seed: int = SEED, facts_per_relation: int = FACTS_PER_RELATION) -> list[Fact]:
    """Generates the facts of the invented world.

    Subjects of one kind are shared by relations (a person is born, married and educated), and
    no name serves in two roles, so a fact has no mirror image.

    Args:
        seed: The world's seed; another seed is another world.
        facts_per_relation: Number of facts of each relation.

    Returns:
        Facts ordered by relation, with the split decided by the subject.
    """
    rng = random.Random(f"almanac-{seed}")
    taken: set[str] = set()
    kinds = sorted({relation.subject_kind for relation in RELATIONS.values()})
    subjects = {kind: list(islice(names(kind, rng, taken), facts_per_relation)) for kind in kinds}
    facts: list[Fact] = []
    for relation in RELATIONS.values():
        count = min(relation.distinct_answers or facts_per_relation, facts_per_relation)
        objects = list(islice(names(relation.object_kind, rng, taken), count))
        answers = _assign(objects, facts_per_relation, rng)
        for subject, answer in zip(subjects[relation.subject_kind], answers, strict=True):
            question = relation.question.replace("[X]", subject)
            facts.append(Fact.make(relation.name, subject, question, (answer,)))
    return facts
