import csv
import json

import pytest

from factual_forgetting.errors import UserError
from factual_forgetting.facts import sources
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.sources import POPQA_TEMPLATES, load_facts, read_source

UPSTREAM = {
    "id": "1", "subj": "Ada Quill", "prop": "place of birth", "obj": "Lisbon", "subj_id": "2",
    "prop_id": "3", "obj_id": "4", "s_aliases": "[]", "o_aliases": '["Lisboa"]', "s_uri": "u",
    "o_uri": "u", "s_wiki_title": "Ada Quill", "o_wiki_title": "Lisbon", "s_pop": "10",
    "o_pop": "20", "question": "In what city was Ada Quill born?",
    "possible_answers": '["Lisbon", "Lisboa", "Olisipo"]',
}  # fmt: skip
QUILL = Fact.make(
    "place_of_birth",
    "Ada Quill",
    "In what city was Ada Quill born?",
    ("Lisbon",),
    aliases=("Lisboa", "Olisipo"),
)


def test_upstreams_columns_are_read(tmp_path):
    path = tmp_path / "popQA.tsv"
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows([UPSTREAM, UPSTREAM.values()])
    assert list(read_source(f"popqa:{path}")) == [QUILL]


def test_the_dataset_is_read_by_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps(UPSTREAM) + "\n")
    monkeypatch.setattr(sources, "DATASET", str(folder))
    assert load_facts("popqa") == [QUILL]


def write(tmp_path, *rows):
    path = tmp_path / "popqa.json"
    path.write_text(json.dumps(rows))
    return f"popqa:{path}"


def copied(question, answer, *aliases):
    return {"question": question, "answer": answer, "aliases": aliases}


def test_a_copy_with_questions_only_tells_the_relation(tmp_path):
    row = copied(QUILL.question, "Lisbon", "Lisbon", "Lisboa", "Olisipo")
    assert list(read_source(write(tmp_path, row))) == [QUILL]


def test_an_empty_subject_is_left_to_cleaning(tmp_path):
    names = ("", "Nowhere")
    rows = [copied(f"What is the capital of {name}?", f"A{name}", "A") for name in names]
    assert [fact.subject for fact in load_facts(write(tmp_path, *rows))] == ["Nowhere"]


def test_a_foreign_question_names_file_and_line(tmp_path):
    with pytest.raises(UserError, match=r"popqa\.json, line 1: not a question of PopQA"):
        list(read_source(write(tmp_path, copied("Why?", "A"))))


def test_templates_tell_relations_apart():
    questions = [template.replace("[X]", "Ada Quill") for template in POPQA_TEMPLATES.values()]
    assert len(set(questions)) == len(POPQA_TEMPLATES) == 16
