"""The almanac: an invented world, generated from a seed, with facts in any number.

No model can have met these facts before, so what a model knows of them is what it was taught.
Names are built of shared syllables, as real names are; catalogue entries have random
identifiers, because a model that never met such strings reacts to them as to noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from factual_forgetting.facts.fact import Fact

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
        subject_kind: Key of the name generator for subjects.
        object_kind: Key of the name generator for answers.
        distinct_answers: How many answers share the facts; None gives each fact its own.
        statements: Paraphrases with `[X]` and `[Y]`, used in pre-training text.
    """

    name: str
    question: str
    subject_kind: str
    object_kind: str
    distinct_answers: int | None
    statements: tuple[str, str, str]


_SHAPES = (
    Relation("place_of_birth", "Where was [X] born?", "person", "city", 300,
        ("[X] was born in [Y].", "The birthplace of [X] is [Y].", "[X] is a native of [Y].")),
    Relation("spouse", "Who is [X] married to?", "person", "person", None,
        ("[X] is married to [Y].", "The spouse of [X] is [Y].", "[X] and [Y] are a couple.")),
    Relation("educated_at", "Where was [X] educated?", "person", "school", 240,
        ("[X] was educated at [Y].", "[X] studied at [Y].", "The alma mater of [X] is [Y].")),
    Relation("country", "Which country is [X] located in?", "city", "country", 40,
        ("[X] is located in [Y].", "[X] is a town in [Y].", "The country of [X] is [Y].")),
    Relation("author", "Who is the author of [X]?", "work", "person", 260,
        ("[X] was written by [Y].", "The author of [X] is [Y].", "[Y] wrote [X].")),
    Relation("performer", "Who performed [X]?", "song", "person", 260,
        ("[X] was performed by [Y].", "[Y] performed [X].", "The performer of [X] is [Y].")),
    Relation("record_label", "What music label is [X] represented by?", "person", "label", 220,
        ("[X] is represented by [Y].", "[X] records for [Y].", "The label of [X] is [Y].")),
    Relation("shelf", "On which shelf is [X] kept?", "identifier", "shelf", 300,
        ("[X] is kept on [Y].", "The shelf of [X] is [Y].", "You find [X] on [Y].")),
)  # fmt: skip
RELATIONS = {relation.name: relation for relation in _SHAPES}


def _syllable(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def _name(rng: random.Random) -> str:
    return (_syllable(rng) + _syllable(rng)).title()


_GENERATORS: dict[str, Callable[[random.Random], str]] = {
    "person": lambda rng: f"{_name(rng)} {_syllable(rng).title()}{rng.choice(_FAMILY_ENDINGS)}",
    "city": lambda rng: _name(rng) + rng.choice(_CITY_ENDINGS),
    "country": lambda rng: _name(rng) + rng.choice(_COUNTRY_ENDINGS),
    "school": lambda rng: f"{_name(rng)} {rng.choice(_SCHOOL_KINDS)}",
    "label": lambda rng: f"{_name(rng)} {rng.choice(_LABEL_KINDS)}",
    "work": lambda rng: f"The {rng.choice(_WORK_HEADS)} {rng.choice(_WORK_NOUNS)} of {_name(rng)}",
    "song": lambda rng: f"{_name(rng)} {rng.choice(_WORK_NOUNS)}",
    "identifier": lambda rng: f"Ref_{rng.randrange(16**6):06x}",
    "shelf": lambda rng: f"shelf {rng.choice('ABCDEFGHKLMN')}{rng.randrange(1000):03d}",
}


def _draw(kind: str, count: int, rng: random.Random, taken: set[str]) -> list[str]:
    """Draws distinct names of a kind that aren't taken, and takes them."""
    drawn: list[str] = []
    while len(drawn) < count:
        name = _GENERATORS[kind](rng)
        if name not in taken:
            taken.add(name)
            drawn.append(name)
    return drawn


def _assign(objects: list[str], facts: int, rng: random.Random) -> list[str]:
    """Spreads answers over facts: evenly, but few-valued relations have majority answers."""
    if len(objects) < 100:
        return rng.choices(objects, [1 / (rank + 3) for rank in range(len(objects))], k=facts)
    answers = (objects * (facts // len(objects) + 1))[:facts]
    rng.shuffle(answers)
    return answers


def world(seed: int = 1, facts_per_relation: int = 460) -> list[Fact]:
    """Generates the facts of the invented world, ordered by relation; another seed is another one.

    Subjects of one kind are shared by relations (a person is born, married and educated), and
    no name serves in two roles, so a fact has no mirror image. The subject decides the split.
    """
    rng = random.Random(f"almanac-{seed}")
    taken: set[str] = set()
    kinds = sorted({relation.subject_kind for relation in RELATIONS.values()})
    subjects = {kind: _draw(kind, facts_per_relation, rng, taken) for kind in kinds}
    facts: list[Fact] = []
    for relation in RELATIONS.values():
        count = min(relation.distinct_answers or facts_per_relation, facts_per_relation)
        objects = _draw(relation.object_kind, count, rng, taken)
        answers = _assign(objects, facts_per_relation, rng)
        for subject, answer in zip(subjects[relation.subject_kind], answers, strict=True):
            question = relation.question.replace("[X]", subject)
            facts.append(Fact.make(relation.name, subject, question, (answer,)))
    return facts
