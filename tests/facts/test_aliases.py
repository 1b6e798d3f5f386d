import json

import pytest

from factual_forgetting.errors import UserError
from factual_forgetting.facts.aliases import (
    AliasTable,
    builtin_aliases,
    names_table,
    read_aliases,
    with_aliases,
)
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import is_correct, normalise


def fact(relation, *answers, aliases=()):
    return Fact.make(relation, "X", "Q?", answers, "dev", aliases)


def aliased(relation, *answers):
    return next(iter(with_aliases([fact(relation, *answers)], builtin_aliases())))


@pytest.mark.parametrize("relation", ["P17", "P495", "P27", "country"])
@pytest.mark.parametrize("text", ["USA", "the United States", "U.S.", "United States of America"])
def test_every_name_of_the_united_states_is_right(relation, text):
    known = aliased(relation, "United States of America")
    assert is_correct(text, known.accepted)
    assert is_correct(text, known.answers) == (text == "United States of America")


@pytest.mark.parametrize(
    ("relation", "gold", "text"),
    [
        ("P17", "People's Republic of China", "China"),
        ("P17", "Ivory Coast", "Cote d'Ivoire"),
        ("P17", "German Democratic Republic", "East Germany"),
        ("P17", "Republic of Cyprus", "Cyprus"),
        ("P495", "Soviet Union", "USSR"),
        ("P495", "United Kingdom", "UK"),
        ("P407", "Persian", "Farsi"),
        ("P407", "English", "English language"),
        ("P407", "Slovene", "Slovenian"),
        ("P27", "France", "French"),
    ],
)
def test_the_builtin_table_knows_other_names(relation, gold, text):
    assert is_correct(text, aliased(relation, gold).accepted)


@pytest.mark.parametrize(
    ("relation", "gold", "text"),
    [
        ("P17", "France", "French"),
        ("P17", "Norway", "NO"),
        ("P19", "United States of America", "USA"),
        ("P17", "Dominica", "Dominican Republic"),
        ("P27", "Dominica", "Dominican Republic"),
        ("P17", "Republic of the Congo", "Zaire"),
        ("P17", "Ireland", "Northern Ireland"),
        ("P407", "Chinese", "China"),
    ],
)
def test_the_builtin_table_does_not_overreach(relation, gold, text):
    assert not is_correct(text, aliased(relation, gold).accepted)


@pytest.mark.parametrize("kind", ["countries", "languages"])
def test_no_name_stands_for_two_things(kind):
    owners = {}
    for row in names_table(kind):
        for name in {normalise(name) for name in (row["name"], *row["other names"])}:
            assert owners.setdefault(name, row["name"]) == row["name"]


def test_codes_are_unique():
    for kind in ("countries", "languages"):
        codes = [row["code"] for row in names_table(kind) if row["code"] != "-"]
        assert len(codes) == len(set(codes))


def test_aliases_leave_out_golds_and_repeats_and_keep_the_facts_own():
    table = AliasTable({"R": [["One", "Uno", "uno", "Eins"]]})
    assert table.aliases(fact("R", "one", aliases=("Un", "UNO"))) == ("Un", "UNO", "Eins")
    assert table.aliases(fact("S", "one")) == ()


def test_tables_join_and_any_relation_counts():
    table = AliasTable({"R": [["One", "Uno"]]}) | AliasTable({"*": [["One", "Eins"]]})
    assert table.aliases(fact("R", "One")) == ("Uno", "Eins")
    assert table.aliases(fact("S", "One")) == ("Eins",)
    assert table.forms("ONE") == {"one", "uno", "eins"}


def test_a_users_table_is_read(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"R": [["One", "Uno"]]}))
    assert read_aliases(path).aliases(fact("R", "One")) == ("Uno",)


@pytest.mark.parametrize(
    "text",
    ["[]", '{"R": "One"}', '{"R": [["One"]]}', '{"R": [["One", ""]]}', '{"R": [[1, 2]]}', "{"],
)
def test_a_malformed_table_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_aliases(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
