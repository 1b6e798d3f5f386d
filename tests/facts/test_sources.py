import os
import subprocess
import sys

import pytest
from making import fact

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.facts import almanac
from factual_forgetting.facts.sources import SourceOptions, clean_source, load_facts


def write(path, *rows):
    files.write_jsonl(path, rows)
    return str(path)


def test_the_almanac_is_loaded_whole():
    facts = load_facts("almanac")
    assert facts == sorted(almanac.world(), key=lambda f: (f.relation, f.id))


def test_relations_and_limits_choose_facts():
    facts = load_facts("almanac", ["country", "spouse"], limit=7, seed=3)
    assert {(f.relation, f.split) for f in facts} == {
        (relation, split) for relation in ("country", "spouse") for split in ("train", "dev")
    }
    assert len(facts) == 28
    assert facts == load_facts("almanac", ["spouse", "country"], limit=7, seed=3)
    assert facts != load_facts("almanac", ["spouse", "country"], limit=7, seed=4)
    cleaned = clean_source(SourceOptions(relations=("country",), limit=7))
    assert len(cleaned.dropped["limit"]) == len(cleaned.read) - 14


def test_cleaning_and_aliases_apply(tmp_path):
    rows = [
        fact("P17", "Lake One", "United States of America"),
        fact("P17", "Bank of France", "France"),
    ]
    path = write(tmp_path / "a.jsonl", *(row.row() for row in rows))
    table = tmp_path / "names.json"
    table.write_text('{"P17": [["United States of America", "Uncle Sam"]]}')
    (one,) = load_facts(path, aliases=table)
    assert {"USA", "Uncle Sam"} <= set(one.aliases)
    assert one.answers == ("United States of America",)
    assert len(load_facts(path, keep=["answer_in_subject"])) == 2


def test_any_dataset_is_read_by_its_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "data"
    for split, subject in (("train", "Lake One"), ("validation", "Lake Two")):
        told = {"prompt": f"Where is {subject}?", "gold": ["Here"], "kind": "R", "of": subject}
        write(folder / f"{split}.jsonl", told)
    columns = {"question": "prompt", "answers": "gold", "relation": "kind", "subject": "of"}
    facts = load_facts(f"datasets:{folder}", columns=columns)
    assert {f.subject: f.split for f in facts} == {"Lake One": "train", "Lake Two": "dev"}
    with pytest.raises(UserError, match=r"split train, row 1: no question"):
        load_facts(f"datasets:{folder}")
    with pytest.raises(UserError, match="could not be loaded"):
        load_facts(f"datasets:{tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("nonsense", {}, "Unknown fact source"),
        ("popqa:none.parquet", {}, "none of"),
        ("almanac", {"relations": ["P17"]}, "has no relation P17"),
        ("almanac", {"keep": ["P17"]}, "No cleaning rule P17"),
        ("almanac", {"columns": {"question": "q"}}, "columns of its own"),
    ],
)
def test_mistakes_are_one_line(source, options, reason):
    with pytest.raises(UserError, match=reason) as caught:
        load_facts(source, **options)
    assert "\n" not in str(caught.value)


def test_a_source_without_facts_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no facts"):
        load_facts(write(tmp_path / "a.jsonl"))
    path = write(tmp_path / "b.jsonl", fact("R", "It", "Here").row())
    with pytest.raises(UserError, match=r"drops every row \(short_subject 1\)"):
        load_facts(path)


def test_the_room_imports_no_heavy_library():
    heavy = {"pandas", "datasets", "matplotlib", "torch", "numpy"}
    code = "import sys, factual_forgetting.facts.command; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert not heavy & set(told.stdout.split())
