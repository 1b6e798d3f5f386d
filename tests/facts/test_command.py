import argparse
import json

import pytest
from making import fact

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.facts import command

ROWS = [
    fact("P17", "Lake One", "France"),
    fact("P17", "Lake Two", "France", split="dev"),
    fact("P17", "Bank of Spain", "Spain", split="dev"),
]


@pytest.fixture
def source(tmp_path):
    files.write_jsonl(tmp_path / "facts.jsonl", [row.row() for row in ROWS])
    return str(tmp_path / "facts.jsonl")


def run(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["facts", *words])
    args.run(args)


def test_a_table_is_printed(source, capsys):
    run(source)
    out = capsys.readouterr().out
    assert "2 facts of 3 rows" in out
    assert "answer_in_subject: 1 rows" in out
    (line,) = [line for line in out.splitlines() if line.startswith("P17")]
    assert line.split() == ["P17", "3", "2", "1", "1", "France", "1.000", "6.000", "0.333"]


def test_json_is_data_and_the_same_twice(source, capsys):
    run(source, "--format", "json", "--keep", "answer_in_subject")
    first = capsys.readouterr().out
    run(source, "--format", "json", "--keep", "answer_in_subject")
    assert capsys.readouterr().out == first
    told = json.loads(first)
    assert told["facts"] == 3
    assert told["source"]["keep"] == ["answer_in_subject"]
    assert "min_popularity" not in told["source"]  # sources told so far stay what they are


def test_unpopular_facts_are_accounted_for(tmp_path, capsys):
    path = tmp_path / "facts.jsonl"
    rows = [{**fact.row(), "popularity": n} for n, fact in enumerate(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(str(path), "--min_popularity", "1")
    assert "min_popularity: 1 rows; under --min_popularity" in capsys.readouterr().out
    run(str(path), "--min_popularity", "1", "--format", "json")
    told = json.loads(capsys.readouterr().out)
    assert told["source"]["min_popularity"] == 1
    assert told["rules"]["min_popularity"] == told["facts"] == 1


def test_a_folder_takes_facts_report_and_plot(source, tmp_path, capsys):
    out = tmp_path / "out"
    run(source, "--output_path", str(out), "--limit", "5")
    assert {path.name for path in out.iterdir()} == {
        "facts.jsonl",
        "account.json",
        "account.png",
        "dropped.json",
    }
    rows = files.read_jsonl(out / "facts.jsonl")
    assert {row["subject"] for row in rows} == {"Lake One", "Lake Two"}
    assert files.read_json(out / "dropped.json")["answer_in_subject"] == [ROWS[2].id]
    assert (out / "account.png").read_bytes().startswith(b"\x89PNG")


def chosen(*words):
    parser = argparse.ArgumentParser()
    command.add_source_arguments(parser)
    return command.facts_from_arguments(parser.parse_args(words))


def test_other_commands_share_the_arguments(tmp_path):
    facts, source = chosen("--limit", "1")
    assert len(facts) == 16
    assert (source["facts"], source["limit"]) == ("almanac", 1)
    assert source["dropped"] == {"limit": 3664}
    path = tmp_path / "a.csv"
    path.write_text("q,a\nWhere is Aberdeen?,Here\n")
    columns = ["--column", "question=q", "answers=a", "relation==R"]
    (one,), source = chosen("--facts", str(path), *columns)
    assert source["facts"] == "a.csv"
    assert (one.relation, one.answers) == ("R", ("Here",))


@pytest.mark.parametrize(
    "words",
    [
        ["--limit", "0"],
        ["--min_popularity", "0"],
        ["--column", "nonsense=a"],
        ["--keep", "nonsense"],
    ],
)
def test_mistakes_are_one_line(words):
    with pytest.raises(UserError) as caught:
        chosen(*words)
    assert "\n" not in str(caught.value)


def test_a_column_without_a_name_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        chosen("--column", "question")
    assert "FIELD=NAME" in capsys.readouterr().err
