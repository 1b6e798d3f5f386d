"""Alias tables: other names of an answer, so that "USA" is right where the gold is longer.

The built-in table names countries (ISO 3166 codes), languages (ISO 639 codes) and
nationalities. It was written for this package from general knowledge. Bare codes ("NO", "IT",
"PER") are no aliases, because they are words as well; abbreviations of prose ("USA") are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import normalise

ANY_RELATION = "*"
_COUNTRY_RELATIONS = ("P17", "P495", "country", "country_of_origin")
_NATIONALITY_RELATIONS = ("P27", "nationality", "country_of_citizenship")
_LANGUAGE_RELATIONS = ("P407", "P364", "P37", "P103", "P1412", "language")


class AliasTable:
    """Sets of names, each set naming one thing, valid for one relation or for any.

    A name that stands in several sets of a relation ("Congolese") has the names of all of
    them; sets are never joined, or Dominica would be the Dominican Republic.

    Args:
        groups: Relation, or `*` for any, to the sets of names.
    """

    def __init__(self, groups: Mapping[str, Iterable[Sequence[str]]]) -> None:
        self._groups = {relation: list(sets) for relation, sets in groups.items()}
        self._names: dict[str, dict[str, tuple[str, ...]]] = {}
        for relation, sets in self._groups.items():
            self._names[relation] = _index(sets)
        self._everywhere = _index(
            sorted({tuple(names) for sets in self._groups.values() for names in sets})
        )

    def aliases(self, fact: Fact) -> tuple[str, ...]:
        """Returns the fact's own aliases and the table's, without the golds, in stable order."""
        seen = {normalise(answer): None for answer in fact.answers}
        found = list(fact.aliases)
        for relation in (fact.relation, ANY_RELATION):
            names = self._names.get(relation)
            if names:
                found += [name for gold in list(seen) for name in names.get(gold, ())]
        kept = []
        for name in found:
            form = normalise(name)
            if form not in seen:
                seen[form] = None
                kept.append(name)
        return tuple(kept)

    def forms(self, name: str) -> frozenset[str]:
        """Returns the normal forms under which any relation of the table knows a name."""
        own = normalise(name)
        return frozenset({own, *map(normalise, self._everywhere.get(own, ()))})

    def __or__(self, other: AliasTable) -> AliasTable:
        """Joins two tables."""
        relations = sorted({*self._groups, *other._groups})
        return AliasTable(
            {key: [*self._groups.get(key, ()), *other._groups.get(key, ())] for key in relations}
        )


def _index(sets: Iterable[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for names in sets:
        for name in names:
            found[normalise(name)].update(dict.fromkeys(names))
    return {form: tuple(names) for form, names in found.items()}


def with_aliases(facts: Iterable[Fact], table: AliasTable) -> Iterator[Fact]:
    """Adds the table's aliases to each fact."""
    for fact in facts:
        aliases = table.aliases(fact)
        yield fact if aliases == fact.aliases else replace(fact, aliases=aliases)


@cache
def builtin_aliases() -> AliasTable:
    """Returns the package's own table of countries, languages and nationalities."""
    countries = [[row["name"], *row["other names"]] for row in names_table("countries")]
    nationalities = [
        [row["name"], *row["other names"], *row["demonyms"]] for row in names_table("countries")
    ]
    languages = [
        [*names, *(f"{name} language" for name in names if "language" not in name)]
        for names in ([row["name"], *row["other names"]] for row in names_table("languages"))
    ]
    return AliasTable(
        {
            **dict.fromkeys(_COUNTRY_RELATIONS, countries),
            **dict.fromkeys(_NATIONALITY_RELATIONS, nationalities),
            **dict.fromkeys(_LANGUAGE_RELATIONS, languages),
        }
    )


@cache
def names_table(kind: str) -> list[dict[str, Any]]:
    """Returns the rows of a table that ships here, `countries` or `languages`; read only."""
    text = (resources.files(__package__) / "names" / f"{kind}.tsv").read_text(encoding="utf-8")
    head, *lines = text.splitlines()
    code, name, *lists = head.split("\t")
    rows = []
    for line in lines:
        cells = line.split("\t")
        row: dict[str, Any] = {code: cells[0], name: cells[1]}
        for key, cell in zip(lists, cells[2:], strict=True):
            row[key] = [part for part in cell.split("|") if part]
        rows.append(row)
    return rows


def read_aliases(path: Path) -> AliasTable:
    """Reads a user's table: JSON, relation (or `*`) to a list of lists of names.

    Raises:
        UserError: If the file is missing, isn't JSON, or has another shape.
    """
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f'{path}: not an object. Write {{"P17": [["United States", "USA"]]}}.')
    for relation, sets in value.items():
        if not isinstance(sets, list) or not all(map(_is_set_of_names, sets)):
            raise UserError(
                f"{path}, relation '{relation}': not a list of lists of at least two names. "
                'Write [["United States", "USA"], ...].'
            )
    return AliasTable(value)


def _is_set_of_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(name, str) and normalise(name) for name in value)
    )
