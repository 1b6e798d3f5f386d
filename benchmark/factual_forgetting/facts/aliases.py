"""Alias tables: other names of an answer, so that "USA" is right where the gold is longer.

The built-in table names countries (ISO 3166 codes), languages (ISO 639 codes) and
nationalities. It was written for this package from general knowledge. Bare codes ("NO", "IT",
"PER") are no aliases, because they are words as well; abbreviations of prose ("USA") are.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import normalise

_ANY_RELATION = "*"
_COUNTRY_RELATIONS = ("P17", "P495", "country", "country_of_origin")
_NATIONALITY_RELATIONS = ("P27", "nationality", "country_of_citizenship")
_LANGUAGE_RELATIONS = ("P407", "P364", "P37", "P103", "P1412", "language")


class AliasTable:
    """Sets of names, each set naming one thing, valid for one relation or for any.

    A name that stands in several sets of a relation ("Congolese") has the names of all of
    them; sets are never joined, or Dominica would be the Dominican Republic.
    """

    def __init__(self, groups: Mapping[str, Iterable[Sequence[str]]]) -> None:
        """Takes the sets of names by relation, or `*` for any."""
        self._groups = {relation: list(sets) for relation, sets in groups.items()}
        self._names = {relation: _index(sets) for relation, sets in self._groups.items()}
        everywhere = {tuple(names) for sets in self._groups.values() for names in sets}
        self._everywhere = _index(sorted(everywhere))

    def aliases(self, fact: Fact) -> tuple[str, ...]:
        """Returns the fact's own aliases and the table's, without the golds, in stable order."""
        golds = dict.fromkeys(map(normalise, fact.answers))
        found = list(fact.aliases)
        for relation in (fact.relation, _ANY_RELATION):
            names = self._names.get(relation, {})
            found += [name for gold in golds for name in names.get(gold, ())]
        by_form: dict[str, str] = {}
        for name in found:
            by_form.setdefault(normalise(name), name)
        return tuple(name for form, name in by_form.items() if form not in golds)

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
    rows = names_table("countries")
    countries = [[row["name"], *row["other names"]] for row in rows]
    nationalities = [[row["name"], *row["other names"], *row["demonyms"]] for row in rows]
    languages = [
        [*names, *(f"{name} language" for name in names if "language" not in name)]
        for names in ([row["name"], *row["other names"]] for row in names_table("languages"))
    ]
    return AliasTable(
        dict.fromkeys(_COUNTRY_RELATIONS, countries)
        | dict.fromkeys(_NATIONALITY_RELATIONS, nationalities)
        | dict.fromkeys(_LANGUAGE_RELATIONS, languages)
    )


def names_table(kind: str) -> list[dict[str, Any]]:
    """Returns the rows of `countries` or `languages`: texts `code` and `name`, lists of others."""
    text = (resources.files(__package__) / "names" / f"{kind}.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [
        {
            column: cell if column in ("code", "name") else list(filter(None, cell.split("|")))
            for column, cell in row.items()
        }
        for row in rows
    ]


def read_aliases(path: Path) -> AliasTable:
    """Reads a user's table: JSON, relation (or `*`) to a list of lists of names.

    Raises:
        UserError: If the file is missing, isn't JSON, or has another shape.
    """
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise InputError(f'{path}: not an object. Write {{"P17": [["United States", "USA"]]}}.')
    for relation, sets in value.items():
        if not isinstance(sets, list) or not all(map(_is_set_of_names, sets)):
            raise InputError(
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
