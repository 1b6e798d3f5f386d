"""Where facts come from, and how they are made fit for testing.

A source is `almanac`, `atlas`, `entityquestions`, `popqa`, `popqa:FILE`, `datasets:ID`, a folder
in EntityQuestions' layout, or a file of rows (JSON Lines, JSON, CSV, TSV; `.gz` too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from factual_forgetting import files
from factual_forgetting.config import Config, parse
from factual_forgetting.errors import InputError, NotFoundError
from factual_forgetting.facts import entityquestions as eq
from factual_forgetting.facts import rows as r
from factual_forgetting.facts.aliases import builtin_aliases, read_aliases, with_aliases
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.atlas import ATLAS_VERSIONS, read_atlas
from factual_forgetting.facts.cleaning import Cleaned, active_rules, clean
from factual_forgetting.facts.fact import Fact

DATASET = "akariasai/PopQA"
# PopQA (Mallen, Asai, Zhong, Das, Khashabi and Hajishirzi 2023): its templates by property.
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


class SourceOptions(Config):
    """Which facts to load, and what to do to them.

    Attributes:
        facts: The source.
        relations: Relations to keep; all if empty.
        limit: At most this many facts of each relation and split, counted after cleaning.
        min_popularity: Least popularity of the facts that tell theirs, after cleaning.
        seed: Decides which facts a limit keeps.
        keep: Cleaning rules to turn off.
        drop: Cleaning rules to turn on that are off by default.
        aliases: The user's alias table, beside the built-in one.
        columns: Fields of a fact to the columns of a file or dataset.
    """

    facts: str = "almanac"
    relations: tuple[str, ...] = ()
    limit: int | None = Field(default=None, gt=0)
    min_popularity: int | None = Field(default=None, gt=0)
    seed: int = 0
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    aliases: Path | None = None
    columns: dict[str, str] = Field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Returns the options as plain data; the least popularity only where one is set."""
        unset = {"min_popularity"} if self.min_popularity is None else None
        return self.model_dump(mode="json", exclude=unset)

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(columns) - set(r.FIELDS)):
            raise ValueError(f"no field {', '.join(unknown)}; the fields are {', '.join(r.FIELDS)}")
        return columns


def load_facts(source: str, relations: Sequence[str] = (), **options: Any) -> list[Fact]:
    """Loads the cleaned facts of a source, each id once, ordered by relation and id.

    Args:
        source: The source; see the module.
        relations: Relations to keep; all if empty.
        **options: The other fields of `SourceOptions`.

    Raises:
        UserError: If an option is unknown or has a wrong value; and as `clean_source` does.
    """
    values = {"facts": source, "relations": relations, **options}
    return list(clean_source(parse(SourceOptions, values, "load_facts")).facts)


def clean_source(options: SourceOptions, *, may_be_empty: bool = False) -> Cleaned:
    """Reads a source, adds aliases, cleans, and applies the limit; nothing is held in memory.

    Raises:
        UserError: If the source is unknown, malformed or empty, a relation, a rule or the alias
            table isn't there, or cleaning leaves no fact, unless it `may_be_empty`.
    """
    active_rules(options.keep, options.drop)  # complains before anything is fetched
    table = builtin_aliases()
    if options.aliases:
        table = table | read_aliases(options.aliases)
    rows = _asked_for(with_aliases(read_source(options.facts, options.columns), table), options)
    cleaned = clean(
        rows, options.keep, options.drop, table, options.limit, options.seed,
        options.min_popularity,
    )  # fmt: skip
    if not (cleaned.facts or may_be_empty):
        counts = ", ".join(f"{rule} {len(rows)}" for rule, rows in cleaned.dropped.items() if rows)
        told = f"{options.facts}: cleaning drops every row ({counts})"
        raise InputError(f"{told}. Give other facts, or --keep a rule.")
    return cleaned


def _asked_for(rows: Iterable[Fact], options: SourceOptions) -> Iterator[Fact]:
    """Yields the rows of the relations asked for, and complains at the end if one isn't there."""
    known = set()
    for row in rows:
        known.add(row.relation)
        if not options.relations or row.relation in options.relations:
            yield row
    if not known:
        raise NotFoundError(f"{options.facts} holds no facts. Give a source with at least one.")
    if unknown := sorted(set(options.relations) - known):
        told = f"{options.facts} has no relation {', '.join(unknown)}"
        raise InputError(f"{told}. It has: {', '.join(sorted(known))}.")


def _popqa_fact(row: Mapping[str, Any], origin: str) -> Fact:
    """Builds a fact from a row of PopQA, in upstream's columns.

    The object is the gold, `possible_answers` are aliases: they mix the names of several
    objects, so that strict accuracy can't rest on them. The relation is the property, with
    `_` for spaces. PopQA has one split; a hash of the subject decides. Copies that kept only
    the question and its answers are read as well: it tells the relation and the subject.
    """
    full = {"subj", "prop", "obj"} <= row.keys()
    gold, names = ("obj", "possible_answers") if full else ("answer", "aliases")
    columns = {"answers": gold, "aliases": names, "split": "=", "subject": "=", "relation": "=?"}
    if full:
        columns |= {"subject": "subj", "relation": "prop"}
    fact = r.fact_from_row(row, columns, origin)
    relation, subject = fact.relation.replace(" ", "_"), fact.subject if row.get("subj") else ""
    if not full:
        relation, subject = _from_template(fact.question, origin)
    aliases = tuple(name for name in fact.aliases if name not in fact.answers)
    return Fact.make(relation, subject, fact.question, fact.answers, None, aliases)


def _from_template(question: str, origin: str) -> tuple[str, str]:
    for relation, template in POPQA_TEMPLATES.items():
        if (subject := eq.subject_of(question, template)) is not None:
            return relation, subject
    raise InputError(f"{origin}: not a question of PopQA. Give its own file, or use --column.")


# What a source's name stands for. Its rows may repeat ids, and are read when they are needed.
NAMED_SOURCES: dict[str, Callable[[], Iterator[Fact]]] = {
    "almanac": lambda: iter(world()),
    "atlas": read_atlas,
    "entityquestions": lambda: eq.read_entity_questions(
        eq.fetch_entity_questions(eq.cache_folder())
    ),
    "popqa": lambda: (_popqa_fact(row, origin) for origin, row in _dataset_rows(DATASET)),
}


def versions_of(source: str) -> dict[str, str]:
    """Returns the versions of the packages that a source is read from; none for most."""
    return ATLAS_VERSIONS if source == "atlas" else {}


def read_source(source: str, columns: Mapping[str, str] | None = None) -> Iterator[Fact]:
    """Yields the facts of a source as they stand there; ids may repeat.

    Raises:
        UserError: If the source is unknown or malformed, or can't take columns.
    """
    kind, _, rest = source.partition(":")
    path = files.at_home(source)
    if kind == "datasets" and rest:
        return (r.fact_from_row(row, columns or {}, origin) for origin, row in _dataset_rows(rest))
    if path.is_file() or (r.kind_of(path) in r.SUFFIXES and kind != "popqa"):
        return (r.fact_from_row(row, columns or {}, origin) for origin, row in r.read_rows(path))
    if columns:
        raise InputError(f"{source} has columns of its own. Leave --column out.")
    if source in NAMED_SOURCES:
        return NAMED_SOURCES[source]()
    if kind == "popqa":
        return (_popqa_fact(row, origin) for origin, row in r.read_rows(files.at_home(rest)))
    if path.is_dir():
        return eq.read_entity_questions(path)
    raise InputError(
        f"Unknown fact source '{source}'. Give {', '.join(NAMED_SOURCES)}, popqa:FILE, "
        "datasets:ID, a folder in EntityQuestions' layout, or a file "
        f"({', '.join(r.SUFFIXES)})."
    )


def _dataset_rows(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row of a dataset, `ID[:CONFIG][@REVISION]`, after where it stands.

    The splits of a dataset that has only one, or names none of ours, say nothing.
    """
    import datasets

    address, _, revision = (spec, "", "") if Path(spec).is_dir() else spec.partition("@")
    if revision and Path(address).is_dir():
        raise InputError(
            f"datasets:{spec} names a folder, which has no revisions. Leave @{revision} out."
        )
    name, _, config = address.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, revision=revision or None)
    except Exception as error:  # the library's errors have no base class of their own
        reason = " ".join(str(error).split())
        told = f"Dataset {spec} could not be loaded ({reason})"
        raise InputError(f"{told}. Check its id and the network, or give a file.") from None
    for split, rows in loaded.items():
        place = r.SPLIT_NAMES.get(split) if len(loaded) > 1 else None
        for number, row in enumerate(rows, start=1):
            yield f"{spec}, split {split}, row {number}", {"split": place, **row}
