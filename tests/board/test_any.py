"""Checkpoints that never trained on D_train, and prompts other than the protocol's."""

from pathlib import Path
from typing import Any

import pytest
from synthetic import any_record, write_record

from factual_forgetting import files
from factual_forgetting.board.board import ANY, KEEPS, LEARNS, Entry, make_board
from factual_forgetting.board.bundles import reference_of
from factual_forgetting.board.form import Record
from factual_forgetting.board.record import find_records, load_record, load_records
from factual_forgetting.board.tables import diff, render_board
from factual_forgetting.board.validate import validate
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.scoring.report import make_report
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.styles import CHAT, FEWSHOT, STYLES, TASK

# Right of the 20 facts of D_Held, all of which the base has right. Five facts or more apart is a
# rank, as in the golden board.
KEPT = {"instruct": 20, "merge": 19, "medical": 10}


@pytest.fixture(scope="module")
def anyone(world: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of checkpoints that never saw D_train; only to be read."""
    root = tmp_path_factory.mktemp("any") / "records"
    for method, kept in KEPT.items():
        any_record(root, world, kept, method)
    any_record(root, world, 20, "instruct", CHAT)
    return root


def board_of(entries: list[Entry], world: Bundle) -> dict[str, Any]:
    return make_board(entries, {world.sha256: reference_of(world)})


def test_every_style_can_be_recorded() -> None:
    assert set(Record.model_json_schema()["properties"]["style"]["enum"]) == set(STYLES)


def test_the_third_table(anyone: Path, world: Bundle) -> None:
    (bundle,) = board_of(list(load_records(anyone)), world)["bundles"]
    rows = {row["id"]: row for row in bundle["rows"]}
    found = [rows[key] for key in bundle["tables"][ANY]]
    told = [(row["method"], row["style"], row["rank"][ANY], row["lost"]["value"]) for row in found]
    assert told == [
        ("instruct", FEWSHOT, 1, 0.0),
        ("merge", FEWSHOT, 1, pytest.approx(0.05)),
        ("medical", FEWSHOT, 3, 0.5),
        ("instruct", CHAT, None, 0.0),
    ]
    assert found[-1]["unranked"] == {ANY: "not asked few-shot"}
    assert {(row["task_learning"], row["plasticity"]) for row in found} == {(None, None)}
    lost = found[2]["lost"]
    assert lost["low"] < 0.5 < lost["high"]
    assert not bundle["tables"][LEARNS]


def test_the_other_tables_stay_as_they_are(
    anyone: Path, entries: list[Entry], board: dict[str, Any], world: Bundle
) -> None:
    (both,) = board_of([*entries, *load_records(anyone)], world)["bundles"]
    (alone,) = board["bundles"]
    assert [both["tables"][table] for table in (LEARNS, KEEPS)] == [
        alone["tables"][table] for table in (LEARNS, KEEPS)
    ]
    assert both["rows"][: len(alone["rows"])] == alone["rows"]
    assert not alone["tables"][ANY]


def test_it_is_shown_where_it_has_rows(anyone: Path, board: dict[str, Any], world: Bundle) -> None:
    found = board_of(list(load_records(anyone)), world)
    text = render_board(found, "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    (row,) = [line for line in lines if "merge" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["1", "merge", "me", "few-shot", "never seen"]
    (base,) = [line for line in lines if "the base itself" in line]
    assert "1.000 [" in base
    assert "Learns new facts (" not in text
    assert "Any checkpoint (" not in render_board(board, "markdown")
    assert "Any checkpoint (ranked by few-shot S)" in render_board(found, "latex")


def test_records_of_it_hold(anyone: Path, world: Bundle) -> None:
    found = validate(anyone, {world.sha256: world})
    # The same checkpoint stands there in two prompts.
    assert {(one.check, one.severity) for one in found} <= {("environment", "warning")}


def changed(root: Path, source: Path, **values: Any) -> Path:
    record, outcomes = load_record(source)
    content = {**record.model_dump(mode="json"), **values}
    return write_record(root, content, [one.model_dump() for one in outcomes])


def errors_of(root: Path, world: Bundle) -> set[str]:
    found = validate(root, {world.sha256: world})
    return {finding.check for finding in found if finding.severity == "error"}


def test_what_never_trained_has_neither_p_nor_a_protocol_nor_a_curve(
    anyone: Path, records: Path, world: Bundle, tmp_path: Path
) -> None:
    first = find_records(anyone)[0]
    told, trained = load_record(first)[0], load_record(find_records(records)[0])[0]
    metrics = {**told.metrics, "plasticity": trained.metrics["plasticity"]}
    changed(tmp_path / "p", first, metrics=metrics)
    assert errors_of(tmp_path / "p", world) == {"metrics"}
    protocol = trained.model_dump(mode="json")
    names = ("protocol", "resolved_protocol", "track", "trials")
    changed(tmp_path / "protocol", first, **{name: protocol[name] for name in names})
    assert "style" in errors_of(tmp_path / "protocol", world)
    changed(tmp_path / "curve", find_records(records)[0], style=FEWSHOT)
    assert "style" in errors_of(tmp_path / "curve", world)


def test_one_checkpoint_stands_once_in_a_prompt(
    anyone: Path, world: Bundle, tmp_path: Path
) -> None:
    first = find_records(anyone)[0]
    changed(tmp_path, first)
    changed(tmp_path, first, submitter="other")
    assert errors_of(tmp_path, world) == {"duplicates"}


def test_a_chat_model_answers_in_sentences(world: Bundle, tmp_path: Path) -> None:
    for style, refused in ((CHAT, set()), (FEWSHOT, {"answers"})):
        path = any_record(tmp_path / "made", world, 20, style, style)
        record, outcomes = load_record(path)
        said = [
            one.model_copy(update={"answer": f"It is {one.answer}, I believe."})
            if one.final
            else one
            for one in outcomes
        ]
        content = record.model_dump(mode="json")
        write_record(tmp_path / style, content, [one.model_dump() for one in said])
        assert errors_of(tmp_path / style, world) == refused


def test_a_few_shot_score_is_recorded_as_its_report_tells_it(
    bundle: Bundle, sft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--bundle", str(bundle.path), "--tasks", FEWSHOT]
    scored, records = tmp_path / "scored", tmp_path / "records"
    args = f"pretrained={sft},dtype=float32"
    assert main(["score", "--model_args", args, *common, "--output_path", str(scored)]) == 0
    capsys.readouterr()
    record = ["record", str(scored), *common, "--submitter", "me", "--output_path", str(records)]
    assert main(record) == 0
    written = Path(capsys.readouterr().out.strip())
    told = load_record(written)[0]
    assert (told.style, told.trained, told.curve) == (FEWSHOT, True, [])
    assert told.protocol is not None
    report = make_report(bundle, read_results(scored, bundle, FEWSHOT))
    for name in ("task_learning", "plasticity", "stability", "lost", "gained"):
        assert told.metrics[name] == report.summary["metrics"][name]
    assert {one.check for one in validate(records, {bundle.sha256: bundle})} <= {
        "seeds", "environment", "origin", "declared",
    }  # fmt: skip
    assert main([*record, "--curve"]) == 1
    assert main(["record", str(sft), *common, *record[4:]]) == 1
    assert "Record a score of it" in capsys.readouterr().err


def test_a_declared_checkpoint_never_trained(
    bundle: Bundle, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factual_forgetting.board.making.told_by_run", lambda _: None)
    told = ["record", str(results), "--bundle", str(bundle.path), "--submitter", "me"]
    told += ["--method", "instruct", "--url", "https://example.org/paper"]
    assert main([*told, "--no-trained", "--output_path", str(tmp_path)]) == 0
    (record,) = [load_record(path)[0] for path in find_records(tmp_path)]
    assert (record.style, record.trained, record.url) == (TASK, False, "https://example.org/paper")
    assert (record.metrics["task_learning"], record.metrics["plasticity"]) == (None, None)


@pytest.mark.parametrize(
    "url",
    ["http://example.org", "javascript:alert(1)", "https://a b", 'https://a"><b>', "https://"],
)
def test_a_source_is_a_plain_link(url: str, anyone: Path) -> None:
    content = files.read_json(find_records(anyone)[0])
    with pytest.raises(ValueError, match="url"):
        Record.model_validate({**content, "url": url})


def test_a_change_of_the_third_table_is_told(
    anyone: Path, entries: list[Entry], board: dict[str, Any], world: Bundle
) -> None:
    found = diff(board, board_of([*entries, *load_records(anyone)], world))
    new = {(row["method"], row["asked"]) for row in found["changed"] if row["field"] == "row"}
    assert new == {(name, "few-shot") for name in KEPT} | {("instruct", "chat")}
