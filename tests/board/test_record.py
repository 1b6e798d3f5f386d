import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import files
from factual_forgetting.board.board import make_board, markdown
from factual_forgetting.board.record import find_records, load_record, make_record
from factual_forgetting.board.validate import validate
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError


@pytest.fixture
def record(bundle: Bundle, results: Path, tmp_path: Path) -> Path:
    return make_record(results, bundle, tmp_path / "records")


def outcomes_of(record: Path) -> Path:
    return record.with_name(f"{record.stem}.outcomes.jsonl.gz")


def rewrite(path: Path, change: Any) -> None:
    content = files.read_json(path)
    change(content)
    files.write_json(path, content)


def test_a_record_holds(bundle: Bundle, record: Path) -> None:
    assert validate(record, bundle) == []


def test_results_and_run_give_the_same_metrics(
    bundle: Bundle, record: Path, sft: Path, tmp_path: Path
) -> None:
    of_run = make_record(sft, bundle, tmp_path / "runs")
    assert files.read_json(of_run)["metrics"] == files.read_json(record)["metrics"]
    assert of_run.stem == record.stem


def test_recording_twice_writes_the_same_bytes(
    bundle: Bundle, results: Path, record: Path, tmp_path: Path
) -> None:
    before = record.read_bytes(), outcomes_of(record).read_bytes()
    again = make_record(results, bundle, tmp_path / "records")
    assert (again.read_bytes(), outcomes_of(again).read_bytes()) == before
    assert find_records(tmp_path / "records") == [record]


def test_a_record_says_how_it_was_made(record: Path) -> None:
    content = files.read_json(record)
    assert content["method"] == {"name": "sft", "settings": {}}
    assert content["seed"] == 0
    assert content["track"] == "open"  # the test's protocol is none of the package
    assert [point["step"] for point in content["curve"]] == [*range(0, 241, 30)]


@pytest.mark.parametrize(
    "metric", ["stability", "plasticity", "lost", "forgetting_from_base", "stability_at_p90"]
)
def test_a_changed_metric_is_refused(bundle: Bundle, record: Path, metric: str) -> None:
    rewrite(record, lambda content: content["metrics"].update({metric: {"value": 0.999}}))
    assert any(f"{metric} is" in fault for fault in validate(record, bundle))


def test_a_slightly_better_metric_is_refused(bundle: Bundle, record: Path) -> None:
    rewrite(record, lambda content: content["metrics"]["stability"].update(value=0.9999))
    assert len(validate(record, bundle)) == 1


def edit_outcomes(record: Path, change: Any, *, rehash: bool) -> None:
    rows = list(files.read_jsonl(outcomes_of(record)))
    change(rows)
    files.write_jsonl(outcomes_of(record), rows)
    if rehash:
        digest = {"sha256": files.sha256_json(rows), "rows": len(rows)}
        rewrite(record, lambda content: content.update(outcomes=digest))


def flip(rows: list[dict[str, Any]]) -> None:
    rows[-1]["final"] = not rows[-1]["final"]


def test_changed_outcomes_are_refused(bundle: Bundle, record: Path) -> None:
    edit_outcomes(record, flip, rehash=False)
    assert "was changed" in validate(record, bundle)[0]


def test_changed_outcomes_with_a_new_hash_are_refused(bundle: Bundle, record: Path) -> None:
    edit_outcomes(record, flip, rehash=True)
    faults = " ".join(validate(record, bundle))
    assert "its id" in faults
    assert "stability is" in faults


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.append(rows[0]),
        lambda rows: rows.pop(),
        lambda rows: rows[0].update(id="ffffffffffffffff"),
        lambda rows: rows[0].update(split="unknown"),
        lambda rows: rows.reverse(),
    ],
    ids=["twice", "missing", "invented", "moved", "reordered"],
)
def test_outcomes_of_other_facts_are_refused(bundle: Bundle, record: Path, change: Any) -> None:
    edit_outcomes(record, change, rehash=True)
    assert any("aren't those of the bundle's facts" in fault for fault in validate(record, bundle))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(bundle_sha256="0" * 64), "made with the bundle 000"),
        (lambda content: content.update(id="../../../../x"), "key 'id'"),
        (lambda content: content.update(extra=1), "unknown key 'extra'"),
        (lambda content: content.update(seed=7), "its id"),
        (lambda content: content["base"].update(pretrained="other"), "base isn't the bundle's"),
        (lambda content: content["metrics"].update(charm=1.0), "unknown metrics: charm"),
    ],
)
def test_tampering_is_refused(bundle: Bundle, record: Path, change: Any, message: str) -> None:
    rewrite(record, change)
    assert any(message in fault for fault in validate(record, bundle))


def test_nan_is_not_json(bundle: Bundle, record: Path) -> None:
    text = json.dumps({**json.loads(record.read_text()), "seed": float("nan")})
    record.write_text(text)
    assert "NaN is not JSON" in validate(record, bundle)[0]


def test_broken_gzip_is_said(bundle: Bundle, record: Path) -> None:
    outcomes_of(record).write_bytes(gzip.compress(b"{}")[:-4])
    assert "not readable" in validate(record, bundle)[0]


def test_the_same_record_twice_counts_once_and_order_does_not_matter(record: Path) -> None:
    entry = load_record(record)
    assert make_board([entry, entry]) == make_board([entry])


def test_the_board_shows_what_the_record_says(record: Path) -> None:
    text = markdown(make_board([load_record(record)]))
    stability = files.read_json(record)["metrics"]["stability"]["value"]
    assert "| sft " in text
    assert f"{stability:.3f} [" in text


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records"):
        find_records(tmp_path)


def test_results_that_nothing_explains_need_a_method(
    bundle: Bundle, results: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "results"
    elsewhere.mkdir()
    for file in results.iterdir():
        text = file.read_text()
        if file.name.startswith("results_"):
            content = json.loads(text)
            content["config"]["model_args"] = {"pretrained": "somebody/model"}
            text = json.dumps(content)
        (elsewhere / file.name).write_text(text)
    with pytest.raises(UserError, match="Say how it was made with --method"):
        make_record(elsewhere, bundle, tmp_path / "records")
    path = make_record(elsewhere, bundle, tmp_path / "records", method="my_method", seed=3)
    assert validate(path, bundle) == []
    assert "no curve" in markdown(make_board([load_record(path)]))
