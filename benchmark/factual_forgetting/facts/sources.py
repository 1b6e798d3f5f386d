"""Where facts come from: the almanac, a JSON Lines file, or EntityQuestions' own layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.facts import almanac
from factual_forgetting.facts.fact import SPLITS, Fact, stable_hash

# The question templates of EntityQuestions (Sciavolino et al. 2021), by Wikidata property.
TEMPLATES = {
    "P17": "Which country is [X] located in?",
    "P19": "Where was [X] born?",
    "P20": "Where did [X] die?",
    "P26": "Who is [X] married to?",
    "P36": "What is the capital of [X]?",
    "P40": "Who is [X]'s child?",
    "P50": "Who is the author of [X]?",
    "P69": "Where was [X] educated?",
    "P106": "What kind of work does [X] do?",
    "P112": "Who founded [X]?",
    "P127": "Who owns [X]?",
    "P131": "Where is [X] located?",
    "P136": "What type of music does [X] play?",
    "P159": "Where is the headquarter of [X]?",
    "P170": "Who was [X] created by?",
    "P175": "Who performed [X]?",
    "P176": "Which company is [X] produced by?",
    "P264": "What music label is [X] represented by?",
    "P276": "Where is [X] located?",
    "P407": "Which language was [X] written in?",
    "P413": "What position does [X] play?",
    "P495": "Which country was [X] created in?",
    "P740": "Where was [X] founded?",
    "P800": "What is [X] famous for?",
}


def load_facts(
    source: str, relations: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> list[Fact]:
    """Loads the facts of a source, each id once, ordered by relation and id.

    Args:
        source: `almanac`, a `.jsonl` file, or a directory in EntityQuestions' layout.
        relations: Relations to keep; all if empty.
        limit: At most this many facts of each relation and split, chosen by `seed`.
        seed: Decides which facts a limit keeps.

    Raises:
        UserError: If the source is unknown, malformed or empty, or a relation isn't in it.
    """
    facts = list({fact.id: fact for fact in _read(source)}.values())
    known = sorted({fact.relation for fact in facts})
    unknown = sorted(set(relations) - set(known))
    if unknown:
        raise UserError(
            f"{source} has no relation {', '.join(unknown)}. It has: {', '.join(known)}."
        )
    kept = [fact for fact in facts if not relations or fact.relation in relations]
    if limit is not None:
        kept = _limit(kept, limit, seed)
    if not kept:
        raise UserError(f"{source} holds no facts. Check --facts, --relations and --limit.")
    return sorted(kept, key=lambda fact: (fact.relation, fact.id))


def _read(source: str) -> Iterator[Fact]:
    path = Path(source)
    if source == "almanac":
        return iter(almanac.world())
    if path.is_dir():
        return _entity_questions(path)
    if path.suffix in {".jsonl", ".gz"} or path.is_file():
        return _json_lines(path)
    raise UserError(
        f"Unknown fact source '{source}'. Give almanac, a .jsonl file, "
        "or a directory that holds train/ and dev/ as EntityQuestions does."
    )


def _limit(facts: list[Fact], limit: int, seed: int) -> list[Fact]:
    taken: dict[tuple[str, str], int] = {}
    kept = []
    for fact in sorted(facts, key=lambda fact: stable_hash("limit", seed, fact.id)):
        group = (fact.relation, fact.split)
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= limit:
            kept.append(fact)
    return kept


def _json_lines(path: Path) -> Iterator[Fact]:
    for number, row in enumerate(files.read_jsonl(path), start=1):
        yield _fact_from_row(row, f"{path}, line {number}")


def _fact_from_row(row: Any, origin: str) -> Fact:
    """Builds a fact from a row of a user's file; `subject` and `split` may be missing."""
    if not isinstance(row, dict):
        raise UserError(f"{origin}: not an object. Write {{question, answers, relation}} a line.")
    missing = [key for key in ("relation", "question", "answers") if not row.get(key)]
    if missing:
        raise UserError(f"{origin}: no {', '.join(missing)}. Each line needs it.")
    relation, question = row["relation"], row["question"]
    subject = row.get("subject") or question
    texts = (relation, question, subject)
    if not all(isinstance(text, str) and text.strip() and "\0" not in text for text in texts):
        raise UserError(f"{origin}: relation, question and subject must be text.")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise UserError(f"{origin}: split '{split}' is none of {', '.join(SPLITS)}.")
    return Fact.make(relation, subject, question, _answers(row["answers"], origin), split)


def _answers(value: Any, origin: str) -> tuple[str, ...]:
    answers = (value,) if isinstance(value, str) else value
    if not isinstance(answers, list | tuple) or not answers:
        raise UserError(f"{origin}: answers must be a list of texts.")
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UserError(f"{origin}: an answer is empty or not a text.")
    return tuple(answer.strip() for answer in answers)


def _entity_questions(root: Path) -> Iterator[Fact]:
    paths = sorted(path for split in SPLITS for path in (root / split).glob(f"*.{split}.json"))
    if not paths:
        raise UserError(
            f"{root} holds no train/*.train.json. Give the folder `dataset/` of EntityQuestions."
        )
    for path in paths:
        relation, split = path.name.split(".")[:2]
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable JSON ({error}). Restore the file.") from None
        if not isinstance(rows, list):
            raise UserError(f"{path}: not a list of questions. Restore the file.")
        for number, row in enumerate(rows, start=1):
            origin = f"{path}, row {number}"
            named = {**row, "relation": relation} if isinstance(row, dict) else row
            fact = _fact_from_row(named, origin)
            subject = subject_of(fact.question, relation)
            yield Fact.make(relation, subject, fact.question, fact.answers, split)


def subject_of(question: str, relation: str) -> str:
    """Recovers the subject from a question by its relation's template, else the question."""
    template = TEMPLATES.get(relation)
    if template is None:
        return question
    head, tail = (re.escape(part) for part in template.split("[X]"))
    match = re.fullmatch(f"{head}(.+){tail}", question, flags=re.DOTALL)
    return match.group(1).strip() if match else question
