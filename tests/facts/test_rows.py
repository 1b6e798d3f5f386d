import gzip
import json

import pytest
from making import fact

from factual_forgetting.errors import UserError
from factual_forgetting.facts.cleaning import clean
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.sources import load_facts, read_source

GOOD = {"relation": "R", "question": "Where is Aberdeen?", "answers": ["Here"]}


def write(tmp_path, name, content):
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"


def refused(path, columns=None):
    with pytest.raises(UserError) as caught:
        list(read_source(str(path), columns))
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_ROWS = {
    "not JSON": "{question: 1}",
    "cut off": '{"question": "Where',
    "NaN": '{"question": NaN}',
    "a key twice": '{"relation": "R", "relation": "S", "question": "Q?", "answers": ["A"]}',
    "not an object": "[1, 2]",
    "no question": {"relation": "R", "answers": ["A"]},
    "no answers": {"relation": "R", "question": "Q?"},
    "no relation": {"question": "Q?", "answers": ["A"]},
    "empty list": {**GOOD, "answers": []},
    "empty answer": {**GOOD, "answers": ["A", " "]},
    "number": {**GOOD, "answers": [1]},
    "question is a list": {**GOOD, "question": ["Q?"]},
    "two lines": {**GOOD, "answers": ["A\nB"]},
    "escaped NUL": {**GOOD, "question": "Q\0?"},
    "half a character": {**GOOD, "question": "Q\ud800?"},
    "unknown split": {**GOOD, "split": "holdout"},
    "split is a list": {**GOOD, "split": ["train"]},
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("name", ["facts.jsonl", "facts.jsonl.gz"])
def test_a_malformed_line_names_file_and_line(tmp_path, name, bad):
    path = write(tmp_path, name, lines(GOOD, "", bad, GOOD))
    assert f"{path}, line 3: " in refused(path)


BAD_BYTES = {
    "10 MB line": b'{"question": "' + b"x" * 10_000_000 + b'"}',
    "NUL": b'{"question": "a\0b"}',
    "Latin-1": '{"question": "Kraków"}'.encode("latin-1"),
    "UTF-16": '{"question": "Q"}'.encode("utf-16-le"),
}


@pytest.mark.parametrize("bad", BAD_BYTES.values(), ids=BAD_BYTES)
@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json", "facts.csv", "facts.tsv"])
def test_malformed_bytes_name_file_and_line(tmp_path, name, bad):
    good = json.dumps(GOOD).encode()
    rows = b"[" + good + b",\n" + bad + b"]" if name == "facts.json" else b"a\n" + bad + b"\n"
    if name == "facts.jsonl":
        rows = good + b"\n" + bad + b"\n"
    path = write(tmp_path, name, rows)
    assert f"{path}, line 2: " in refused(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("{}", 1),
        ("[\n{}\n{}\n]", 2),
        ('[\n{"a": 1}\n{"b": 2}\n]', 2),
        (f"[\n{json.dumps(GOOD)},\n\n{{bad}}]", 4),
        (f"[\n{json.dumps(GOOD)}\n", 2),
        (f"[{json.dumps(GOOD)}] more", 1),
        (f"[\n{json.dumps(GOOD)},\n{json.dumps(GOOD, indent=1)},\n17]", 10),
    ],
)
def test_a_malformed_json_list_names_file_and_line(tmp_path, text, line):
    path = write(tmp_path, "facts.json", text)
    assert f"{path}, line {line}: " in refused(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("question,question\n", 1),
        ("question,answers,relation\nQ?,A\n", 2),
        ("question,answers,relation\nQ?,A,R\n\nQ?,A,R,more\n", 4),
        ('question,answers,relation\n"Q\n?",A,R\n', 2),
        ('question,answers,relation\n"Q?",A,R\n"open,A,R\nQ?,A,R\n', 3),
        ('question,answers,relation\n"Weird Al" Yankovic?,A,R\n', 2),
        ("question,answers,relation\nQ?,,R\n", 2),
    ],
)
def test_a_malformed_table_row_names_file_and_line(tmp_path, text, line):
    path = write(tmp_path, "facts.csv", text)
    assert f"{path}, line {line}: " in refused(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.tsv.gz"])
def test_every_format_gives_the_same_facts(tmp_path, name):
    rows = [
        {"question": f"Where is {subject}?", "answers": '["Here", "There"]', "relation": "R",
         "subject": subject, "split": "validation"}
        for subject in ("Aberdeen", "Kraków", 'Saint "B", Town')
    ]  # fmt: skip
    if ".json" in name:
        content = json.dumps(rows, indent=1) if name == "a.json" else lines(*rows)
    else:
        mark = "," if ".csv" in name else "\t"
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in row.values()] for row in rows]
        content = "\n".join(map(mark.join, [list(rows[0]), *quoted])) + "\n"
    facts = list(read_source(str(write(tmp_path, name, "\ufeff" + content))))
    assert facts == [
        Fact.make("R", row["subject"], row["question"], ("Here", "There"), "dev") for row in rows
    ]


def test_columns_may_have_other_names_and_constants(tmp_path):
    path = write(tmp_path, "a.csv", "prompt,gold,place\nWhere is Aberdeen?,[REC],Aberdeen\n")
    columns = {"question": "prompt", "answers": "gold", "subject": "place", "relation": "=R"}
    (one,) = read_source(str(path), columns)
    assert one == Fact.make("R", "Aberdeen", "Where is Aberdeen?", ("[REC]",))
    assert "The columns are prompt, gold, place" in refused(path)


@pytest.mark.parametrize("answer", ["A", "[" * 100_000])
def test_one_text_is_an_answer_and_the_question_stands_for_a_subject(tmp_path, answer):
    path = write(tmp_path, "a.jsonl", lines({**GOOD, "answers": answer}))
    (one,) = read_source(str(path))
    assert one.answers == (answer,)
    assert one.subject == GOOD["question"]
    assert one.split in {"train", "dev"}


def test_a_written_fact_is_read_back(tmp_path):
    one = fact("R", "Aberdeen", "Here", split="test", aliases=("Hither",))
    path = write(tmp_path, "a.jsonl", lines(one.row()))
    assert load_facts(str(path)) == [one]
    assert Fact.from_row(json.loads(json.dumps(one.row()))) == one


def test_a_damaged_archive_and_a_missing_file_are_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(GOOD).encode())[:-9])
    assert str(path) in refused(path)
    assert "does not exist" in refused(tmp_path / "none.jsonl")
    assert "none of" in refused(write(tmp_path, "a.parquet", "x"))


def test_a_domain_is_any_column_and_lives_through_cleaning(tmp_path):
    path = tmp_path / "facts.csv"
    rows = "Who is Anna?,x,r,Anna,north\nWho is Bert?,y,r,Bert,\n"
    path.write_text("question,answers,relation,subject,region\n" + rows)
    facts = load_facts(str(path), columns={"domain": "region"})
    assert {fact.subject: fact.domain for fact in facts} == {"Anna": "north", "Bert": None}
    told = [fact.domain for fact in facts if "domain" in fact.row()]
    assert told == ["north"]


def test_popularity_is_read_and_written(tmp_path):
    told = {"question": "q?", "answers": "a", "relation": "R"}
    path = tmp_path / "a.jsonl"
    for value, popularity in ((12, 12), ("0", 0), ("", None), (None, None)):
        path.write_text(json.dumps({**told, "popularity": value}))
        (fact,) = read_source(str(path))
        assert fact.popularity == popularity
        assert ("popularity" in fact.row()) == (popularity is not None)
        assert Fact.from_row(fact.row()) == fact
        assert list(clean([fact], keep=["short_subject"]).facts) == [fact]
    for value in ("many", -1, 0.5, True, "9" * 5000):
        path.write_text(json.dumps({**told, "popularity": value}))
        assert "line 1: popularity" in refused(path)
        (fact,) = read_source(str(path), {"popularity": "="})
        assert fact.popularity is None
