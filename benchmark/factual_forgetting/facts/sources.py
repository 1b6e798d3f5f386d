"""Where facts come from, and how they are made fit for testing.

A source is `almanac`, `atlas`, `entityquestions`, `popqa`, `popqa:FILE`, `datasets:ID`, a folder in
EntityQuestions' layout, or a file of rows (JSON Lines, JSON, CSV, TSV; `.gz` too).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from factual_forgetting.config import Config
from factual_forgetting.errors import UserError
from factual_forgetting.facts import almanac, atlas
from factual_forgetting.facts.aliases import builtin_aliases, read_aliases, with_aliases
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
        unknown = sorted(set(columns) - set(FIELDS))
        if unknown:
            raise ValueError(f"no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}")
        return columns


def load_facts(
    source: str,
    relations: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Fact]:
    """Loads the cleaned facts of a source, each id once, ordered by relation and id.

    Args:
        source: The source; see the module.
        relations: Relations to keep; all if empty.
        limit: At most this many facts of each relation and split, chosen by `seed`.
        seed: Decides which facts a limit keeps.
        **options: The other fields of `SourceOptions`.

    Raises:
        UserError: If the source is unknown, malformed or empty, or a relation isn't in it.
    """
    chosen = SourceOptions(
        facts=source, relations=tuple(relations), limit=limit, seed=seed, **options
    )
    return chosen_facts(chosen)


def chosen_facts(options: SourceOptions) -> list[Fact]:
    """Loads the cleaned facts that the options choose, each id once, by relation and id.

    Raises:
        UserError: As `chosen` does.
    """
    return list(chosen(options).facts)


def chosen(options: SourceOptions) -> Cleaned:
    """Finds what the options choose, with what cleaning dropped.

    Raises:
        UserError: As `prepare` does, and if cleaning leaves no fact.
    """
    cleaned = prepare(options)
    if not cleaned.facts:
        counts = ", ".join(f"{rule} {len(rows)}" for rule, rows in cleaned.dropped.items() if rows)
        raise UserError(
            f"{options.facts}: cleaning drops every row ({counts}). Give other facts, "
            "or --keep a rule."
        )
    return cleaned


def prepare(options: SourceOptions) -> Cleaned:
    """Reads a source, adds aliases, cleans, and applies the limit; nothing is held in memory.

    Raises:
        UserError: If the source is unknown, malformed or empty, or a relation, a rule or the
            alias table isn't there.
    """
    active_rules(options.keep, options.drop)
    table = builtin_aliases()
    if options.aliases:
        table = table | read_aliases(options.aliases)
    rows = _asked_for(with_aliases(read_source(options.facts, options.columns), table), options)
    return clean(
        rows,
        options.keep,
        options.drop,
        table,
        options.limit,
        options.seed,
        options.min_popularity,
    )


def _asked_for(rows: Iterable[Fact], options: SourceOptions) -> Iterator[Fact]:
    """Yields the rows of the relations asked for, and complains at the end if one isn't there."""
    known = set()
    for row in rows:
        known.add(row.relation)
        if not options.relations or row.relation in options.relations:
            yield row
    if not known:
        raise UserError(f"{options.facts} holds no facts. Give a source with at least one.")
    unknown = sorted(set(options.relations) - known)
    if unknown:
        raise UserError(
            f"{options.facts} has no relation {', '.join(unknown)}. "
            f"It has: {', '.join(sorted(known))}."
        )


def versions_of(source: str) -> dict[str, str]:
    """Returns the versions of the packages that a source is read from; none for most."""
    return dict(atlas.VERSIONS) if source == "atlas" else {}


def read_source(source: str, columns: Mapping[str, str] | None = None) -> Iterator[Fact]:
    """Yields the facts of a source as they stand there; ids may repeat.

    Raises:
        UserError: If the source is unknown or malformed, or can't take columns.
    """
    kind, _, rest = source.partition(":")
    path = Path(source)
    if kind == "datasets" and rest:
        return _dataset_facts(rest, columns or {})
    if path.is_file() or (kind_of(path) in SUFFIXES and kind != "popqa"):
        return _file_facts(path, columns or {})
    if columns:
        raise UserError(f"{source} has columns of its own. Leave --column out.")
    if source == "almanac":
        return iter(almanac.world())
    if source == "atlas":
        return atlas.read_atlas()
    if source == "entityquestions":
        return read_entity_questions(fetch_entity_questions(cache_folder()))
    if source == "popqa":
        rows = _dataset_rows(DATASET)
        return (popqa_fact(row, origin) for origin, _, row in rows)
    if kind == "popqa":
        return _popqa_file(Path(rest))
    if path.is_dir():
        return read_entity_questions(path)
    raise UserError(
        f"Unknown fact source '{source}'. Give almanac, atlas, entityquestions, popqa, "
        "popqa:FILE, datasets:ID, a folder in EntityQuestions' layout, or a file "
        f"({', '.join(SUFFIXES)})."
    )


def _file_facts(path: Path, columns: Mapping[str, str]) -> Iterator[Fact]:
    _check_kind(path)
    for line, row in read_rows(path):
        yield fact_from_row(row, columns, f"{path}, line {line}")


def _popqa_file(path: Path) -> Iterator[Fact]:
    _check_kind(path)
    for line, row in read_rows(path):
        yield popqa_fact(row, f"{path}, line {line}")


def _check_kind(path: Path) -> None:
    if kind_of(path) not in SUFFIXES:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}. Rename or convert it.")


def _dataset_facts(spec: str, columns: Mapping[str, str]) -> Iterator[Fact]:
    for origin, split, row in _dataset_rows(spec):
        yield fact_from_row({"split": split, **row}, columns, origin)


def _dataset_rows(spec: str) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yields origin, split and row of a dataset, `ID[:CONFIG][@REVISION]`.

    The splits of a dataset that has only one, or names none of ours, say nothing: None.
    """
    import datasets

    address, _, revision = spec.partition("@")
    name, _, config = address.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, revision=revision or None)
    except Exception as error:  # the library's errors have no base class of their own
        reason = " ".join(str(error).split())
        raise UserError(
            f"Dataset {spec} could not be loaded ({reason}). Check its id and the network, or "
            "give a file."
        ) from None
    for split, rows in loaded.items():
        place = SPLIT_NAMES.get(split) if len(loaded) > 1 else None
        for number, row in enumerate(rows, start=1):
            yield f"{spec}, split {split}, row {number}", place, row
