"""PopQA (Mallen, Asai, Zhong, Das, Khashabi and Hajishirzi 2023), in upstream's columns.

Copies that kept only the question and its answers are read as well: the question tells the
relation and the subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factual_forgetting.errors import InputError
from factual_forgetting.facts.entityquestions import subject_of
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.rows import fact_from_row

DATASET = "akariasai/PopQA"

# The question templates of the data, by the name of its property.
POPQA_TEMPLATES = {
    "author": "Who is the author of [X]?",
    "capital": "What is the capital of [X]?",
    "capital_of": "What is [X] the capital of?",
    "color": "What color is [X]?",
    "composer": "Who was the composer of [X]?",
    "country": "In what country is [X]?",
    "director": "Who was the director of [X]?",
    "father": "Who is the father of [X]?",
    "genre": "What genre is [X]?",
    "mother": "Who is the mother of [X]?",
    "occupation": "What is [X]'s occupation?",
    "place_of_birth": "In what city was [X] born?",
    "producer": "Who was the producer of [X]?",
    "religion": "What is the religion of [X]?",
    "screenwriter": "Who was the screenwriter for [X]?",
    "sport": "What sport does [X] play?",
}


def popqa_fact(row: Mapping[str, Any], origin: str) -> Fact:
    """Builds a fact from a row of PopQA.

    The object is the gold, `possible_answers` are aliases: they mix the names of several
    objects, so that strict accuracy can't rest on them. The relation is the property, with
    `_` for spaces. PopQA has one split; a hash of the subject decides.

    Raises:
        UserError: If a column is missing or malformed, or no template fits the question.
    """
    full = {"subj", "prop", "obj"} <= row.keys()
    gold, names = ("obj", "possible_answers") if full else ("answer", "aliases")
    columns = {"answers": gold, "aliases": names, "split": "=", "subject": "=", "relation": "=?"}
    if full:
        columns |= {"subject": "subj", "relation": "prop"}
    fact = fact_from_row(row, columns, origin)
    relation, subject = fact.relation.replace(" ", "_"), fact.subject if row.get("subj") else ""
    if not full:
        relation, subject = _from_template(fact.question, origin)
    aliases = tuple(name for name in fact.aliases if name not in fact.answers)
    return Fact.make(relation, subject, fact.question, fact.answers, None, aliases)


def _from_template(question: str, origin: str) -> tuple[str, str]:
    for relation, template in POPQA_TEMPLATES.items():
        if (subject := subject_of(question, template)) is not None:
            return relation, subject
    raise InputError(f"{origin}: not a question of PopQA. Give its own file, or use --column.")
