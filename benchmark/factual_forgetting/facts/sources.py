"""Where facts come from, and how they are made fit for testing.

A source is `almanac`, `entityquestions`, `popqa`, `popqa:FILE`, `datasets:ID`, a folder in
EntityQuestions' layout, or a file of rows (JSON Lines, JSON, CSV, TSV; `.gz` too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from factual_forgetting.config import Config, parse
from factual_forgetting.errors import InputError, NotFoundError
from factual_forgetting.facts.aliases import builtin_aliases, read_aliases, with_aliases
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.cleaning import Cleaned, active_rules, clean
from factual_forgetting.facts.entityquestions import (
    cache_folder,
    fetch_entity_questions,
    read_entity_questions,
)
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.popqa import DATASET, popqa_fact
from factual_forgetting.facts.rows import (
    FIELDS,
    SPLIT_NAMES,
    SUFFIXES,
    fact_from_row,
    kind_of,
    read_rows,
)


class SourceOptions(Config):
    """Which facts to load, and what to do to them.

    Attributes:
        facts: The source.
        relations: Relations to keep; all if empty.
        limit: At most this many facts of each relation and split, counted after cleaning.
        seed: Decides which facts a limit keeps.
        keep: Cleaning rules to turn off.
        drop: Cleaning rules to turn on that are off by default.
        aliases: The user's alias table, beside the built-in one.
        columns: Fields of a fact to the columns of a file or dataset.
    """

    facts: str = "almanac"
    relations: tuple[str, ...] = ()
    limit: int | None = Field(default=None, gt=0)
    seed: int = 0
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    aliases: Path | None = None
    columns: dict[str, str] = Field(default_factory=dict)

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(columns) - set(FIELDS))
        if unknown:
            raise ValueError(f"no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}")
        return columns


def load_facts(source: str, relations: Sequence[str] = (), **options: Any) -> list[Fact]:
    """Loads the cleaned facts of a source, each id once, ordered by relation and id.

    Args:
        source: The source; see the module.
        relations: Relations to keep; all if empty.
        **options: The other fields of `SourceOptions`.

    Raises:
        UserError: If there is no such option, or it has a wrong value; and as `clean_source` does.
    """
    values = {"facts": source, "relations": relations, **options}
    return list(clean_source(parse(SourceOptions, values, "load_facts")).facts)


def clean_source(options: SourceOptions, *, may_be_empty: bool = False) -> Cleaned:
    """Reads a source, adds aliases, cleans, and applies the limit; nothing is held in memory.

    Args:
        options: Which facts, and what to do to them.
        may_be_empty: Whether cleaning may leave no fact.

    Raises:
        UserError: If the source is unknown, malformed or empty, a relation, a rule or the alias
            table isn't there, or cleaning leaves no fact.
    """
    active_rules(options.keep, options.drop)  # complains before anything is fetched
    table = builtin_aliases()
    if options.aliases:
        table = table | read_aliases(options.aliases)
    rows = _asked_for(with_aliases(read_source(options.facts, options.columns), table), options)
    cleaned = clean(rows, options.keep, options.drop, table, options.limit, options.seed)
    if not (cleaned.facts or may_be_empty):
        counts = ", ".join(f"{rule} {len(rows)}" for rule, rows in cleaned.dropped.items() if rows)
        raise InputError(
            f"{options.facts}: cleaning drops every row ({counts}). Give other facts, "
            "or --keep a rule."
        )
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
    unknown = sorted(set(options.relations) - known)
    if unknown:
        raise InputError(
            f"{options.facts} has no relation {', '.join(unknown)}. "
            f"It has: {', '.join(sorted(known))}."
        )


# What a source's name stands for. Its rows may repeat ids, and are read when they are needed.
NAMED_SOURCES: dict[str, Callable[[], Iterator[Fact]]] = {
    "almanac": lambda: iter(world()),
    "entityquestions": lambda: read_entity_questions(fetch_entity_questions(cache_folder())),
    "popqa": lambda: (popqa_fact(row, origin) for origin, row in _dataset_rows(DATASET)),
}


def read_source(source: str, columns: Mapping[str, str] | None = None) -> Iterator[Fact]:
    """Yields the facts of a source as they stand there; ids may repeat.

    Raises:
        UserError: If the source is unknown or malformed, or can't take columns.
    """
    kind, _, rest = source.partition(":")
    path = Path(source)
    if kind == "datasets" and rest:
        return (fact_from_row(row, columns or {}, origin) for origin, row in _dataset_rows(rest))
    if path.is_file() or (kind_of(path) in SUFFIXES and kind != "popqa"):
        return (fact_from_row(row, columns or {}, origin) for origin, row in read_rows(path))
    if columns:
        raise InputError(f"{source} has columns of its own. Leave --column out.")
    if source in NAMED_SOURCES:
        return NAMED_SOURCES[source]()
    if kind == "popqa":
        return (popqa_fact(row, origin) for origin, row in read_rows(Path(rest)))
    if path.is_dir():
        return read_entity_questions(path)
    raise InputError(
        f"Unknown fact source '{source}'. Give {', '.join(NAMED_SOURCES)}, popqa:FILE, "
        "datasets:ID, a folder in EntityQuestions' layout, or a file "
        f"({', '.join(SUFFIXES)})."
    )


def _dataset_rows(spec: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row of a dataset, `ID[:CONFIG][@REVISION]`, after where it stands.

    The splits of a dataset that has only one, or names none of ours, say nothing.
    """
    import datasets

    address, _, revision = spec.partition("@")
    name, _, config = address.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, revision=revision or None)
    except Exception as error:  # the library's errors have no base class of their own
        reason = " ".join(str(error).split())
        raise InputError(
            f"Dataset {spec} could not be loaded ({reason}). Check its id and the network, or "
            "give a file."
        ) from None
    for split, rows in loaded.items():
        place = SPLIT_NAMES.get(split) if len(loaded) > 1 else None
        for number, row in enumerate(rows, start=1):
            yield f"{spec}, split {split}, row {number}", {"split": place, **row}
