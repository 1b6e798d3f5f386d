"""Facts made for tests."""

from factual_forgetting.facts.entityquestions import ENTITYQUESTIONS_TEMPLATES
from factual_forgetting.facts.fact import Fact


def fact(relation, subject, *answers, split="train", aliases=()):
    question = ENTITYQUESTIONS_TEMPLATES.get(relation, f"{relation} of [X]?")
    question = question.replace("[X]", subject)
    return Fact.make(relation, subject, question, answers or ("Somewhere",), split, aliases)
