"""The form of a record: `record-3` is written, `record-1` and `record-2` are read as well."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic import ME, drawn, publish

from factual_forgetting import files
from factual_forgetting.board.board import make_board
from factual_forgetting.board.bundles import bundles_at_hand, reference_of
from factual_forgetting.board.form import (
    _LATER,
    OUTCOMES_SUFFIX,
    RECORD_FORM,
    UNSTATED,
    Record,
    record_id,
)
from factual_forgetting.board.making import make_record
from factual_forgetting.board.record import find_records, load_record, load_records
from factual_forgetting.board.tables import render_board
from factual_forgetting.board.validate import validate
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError

BEFORE = Path(__file__).parent / "before" / "records"  # Published in the first form.


def as_record_2(path: Path) -> Path:
    """Writes a record as the form before had it, under the id that it had there."""
    content = files.read_json(path)
    content |= {"format": "record-2", "level": "self-reported"}
    for name in _LATER:
        del content[name]
    content["id"] = record_id(content)
    outcomes = path.with_name(content["outcomes"]["file"])
    content["outcomes"]["file"] = content["id"] + OUTCOMES_SUFFIX
    outcomes.rename(path.with_name(content["outcomes"]["file"]))
    path.unlink()
    files.write_json(path.with_name(f"{content['id']}.json"), content)
    return path.with_name(f"{content['id']}.json")


def as_record_1(path: Path, batch_size: str | None = "8", **changed: Any) -> Path:
    """Writes a record as the form before that had it."""
    path = as_record_2(path)
    content = files.read_json(path)
    content["format"] = "record-1"
    content["cost"]["extra_forwards"] = content["cost"].pop("extra_tokens")
    for name in ("training_batch_size", "scoring_batch_size"):
        del content["environment"][name]
    content["environment"]["batch_size"] = batch_size
    path.write_text(json.dumps({**content, **changed}))
    return path


@pytest.fixture
def old(records: Path, tmp_path: Path) -> Path:
    """The records of the leaderboard as the form before had them."""
    root = Path(shutil.copytree(records, tmp_path / "records"))
    for path in find_records(root):
        as_record_1(path)
    return root


def test_published_records_of_the_form_before_are_read() -> None:
    paths = find_records(BEFORE)
    told = [(files.read_json(path), path.stem) for path in paths]
    for content, name in told:
        record = Record.model_validate(content)
        plain = record.model_dump(mode="json")
        assert record_id(content) == record_id(plain) == record.id == name
        assert record.cost.extra_tokens == content["cost"]["extra_forwards"]
        assert record.environment.training_batch_size == content["environment"]["batch_size"]
        assert (record.submitter, record.matcher_version) == (UNSTATED, "exact-2")
    found = validate(BEFORE, bundles_at_hand([]))
    assert {(finding.check, finding.severity) for finding in found} == {
        ("before", "warning"),
        ("answered", "warning"),
        ("seeds", "warning"),
    }


def test_a_record_of_the_form_before_has_the_same_numbers_on_the_board(
    old: Path, board: dict[str, Any], world: Bundle
) -> None:
    found = make_board(load_records(old), {world.sha256: reference_of(world)})
    rows, now = ({r["method"]: r for r in told["bundles"][0]["rows"]} for told in (found, board))
    assert list(rows) == list(now)
    for method, row in rows.items():
        for name in ("stability_at_p90", "stability", "lost", "cost", "curve", "track"):
            assert row[name] == now[method][name], (method, name)
    told = {(finding.check, finding.severity) for finding in validate(old, {world.sha256: world})}
    assert told == {("before", "warning")}


def test_without_a_version_it_is_the_form_before(old: Path) -> None:
    path = find_records(old)[0]
    told = load_record(path)
    content = files.read_json(path)
    del content["format"]
    path.write_text(json.dumps(content))
    assert load_record(path) == told


def test_each_batch_size_has_its_name(
    bundle: Bundle, results: Path, sft: Path, tmp_path: Path
) -> None:
    sizes = {}
    for source in (sft, results):
        path = make_record(source, bundle, tmp_path / source.name, ME)
        made = load_record(path)[0].environment
        before = load_record(as_record_1(path))[0].environment
        sizes[source] = [
            (one.training_batch_size, one.scoring_batch_size) for one in (made, before)
        ]
    trained = str(files.read_json(sft / "run.json")["protocol"]["batch_size"])
    assert sizes[sft] == [(trained, None), ("8", None)]
    # The form before had one: of a checkpoint that was scored, that of scoring.
    assert sizes[results] == [(trained, "16"), (None, "8")]


def test_what_is_written_is_read_back(records: Path) -> None:
    for path in find_records(records):
        content = files.read_json(path)
        assert content["format"] == RECORD_FORM
        assert load_record(path)[0].model_dump(mode="json") == content


@pytest.mark.parametrize(
    ("form", "part", "name", "told"),
    [
        ("record-3", "cost", "extra_forwards", "unknown key 'cost.extra_forwards'"),
        ("record-3", "environment", "batch_size", "unknown key 'environment.batch_size'"),
        ("record-2", "origin", "descent", "record-2 has no origin"),
        ("record-1", "cost", "extra_tokens", "record-1 has no cost.extra_tokens"),
        ("record-1", "environment", "scoring_batch_size", "record-1 has no environment.scoring"),
        ("record-4", "cost", "extra_tokens", "key 'format'"),
    ],
)
def test_names_of_two_forms_are_refused_in_one_line(
    records: Path, tmp_path: Path, form: str, part: str, name: str, told: str
) -> None:
    path = find_records(Path(shutil.copytree(records, tmp_path / "records")))[0]
    if form == "record-1":
        path = as_record_1(path)
    if form == "record-2":
        path = as_record_2(path)
    content = {**files.read_json(path), "format": form}
    content.setdefault(part, {})[name] = None
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        load_record(path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_protocol_is_no_track(world: Bundle, tmp_path: Path) -> None:
    path = publish(tmp_path, world, drawn(world, 1, 0.3, 0.1))
    record, outcomes = load_record(path)
    board = make_board([(record.model_copy(update={"protocol": None, "track": "open"}), outcomes)])
    (row,) = board["bundles"][0]["rows"]
    assert (row["protocol"], row["track"]) == ("no protocol", "open")
    assert "| no protocol | open " in " ".join(render_board(board, "markdown").split())
