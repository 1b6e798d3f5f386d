"""What users are told where nothing else of the board's tests tells it."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import ME, answered_record, drawn, make_bundle, publish, write_record, write_run

from factual_forgetting import files
from factual_forgetting.board.bundles import fetch_official, make_official, official
from factual_forgetting.board.making import make_record, record_curve
from factual_forgetting.board.record import find_records, load_record
from factual_forgetting.bundle.manifest import UNKNOWN, Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import InputError, NotFoundError, PackageError
from factual_forgetting.scoring.results import read_results


def test_versions_that_differ_in_case_alone(world: Bundle, tmp_path: Path) -> None:
    make_official(world, tmp_path, "v1")
    with pytest.raises(InputError, match=r"where names have no case. Give another --version"):
        make_official(world, tmp_path, "V1")


def test_reference_rows_of_another_bundle(world: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "bundle", heldout=24)
    first = make_official(world, tmp_path / "bundles", "v1")
    second = make_official(other, tmp_path / "bundles", "v2")
    shutil.copyfile(first.with_name("reference.json"), second.with_name("reference.json"))
    with pytest.raises(InputError, match="is not of the bundle in"):
        official(tmp_path / "bundles")


def test_a_bundle_has_one_name(world: Bundle, tmp_path: Path) -> None:
    home = make_official(world, tmp_path, "v1").parent
    other = Path(shutil.copytree(home, tmp_path / "almanac/v9")) / "reference.json"
    files.write_json(other, {**files.read_json(other), "name": "almanac/v9"})
    with pytest.raises(InputError, match=r"has a name already\. Remove it"):
        official(tmp_path)


def test_answers_of_all_splits(
    bundle: Bundle, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_results(results, bundle)
    (first, *_) = bundle.splits[UNKNOWN]
    fewer = replace(found, correct={k: v for k, v in found.correct.items() if k != first.fact.id})
    where = "factual_forgetting.board.making.read_results"
    monkeypatch.setattr(where, lambda *_: fewer)
    with pytest.raises(InputError, match=r"no answers to the facts of unknown.* with all tasks"):
        make_record(results, bundle, tmp_path, ME)


def test_a_source_of_another_bundle(
    world: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_bundle(tmp_path / "bundle", heldout=24)
    make_official(world, tmp_path / "bundles", "v1", f"me/facts@{'a' * 40}")
    where = "factual_forgetting.board.bundles.m.locate_bundle"
    monkeypatch.setattr(where, lambda _: other.path)
    with pytest.raises(InputError, match=r"holds another bundle than .* Correct its source"):
        fetch_official(tmp_path / "bundles", [])


def test_a_plot_is_of_one_bundle(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_bundle(tmp_path / "bundle", heldout=24)
    root = Path(shutil.copytree(records, tmp_path / "records"))
    run = write_run(tmp_path / "run", other, drawn(other, 1, 0.3, 0.1))
    answered_record(run, other, root)
    assert main(["board", str(root), "--plot", str(tmp_path / "plot.png")]) == 1
    assert "plot each bundle's by itself" in capsys.readouterr().err


def test_an_export_needs_the_bundle(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--to", "model_card", "--output_path", str(tmp_path / "out")]
    assert main(["export", str(find_records(records)[0]), *given]) == 1
    assert "Give it with --bundle" in capsys.readouterr().err


def test_an_older_library_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from factual_forgetting.board.hub import eval_results

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PackageError, match="Install a newer one"):
        eval_results(None)  # type: ignore[arg-type]


def test_a_run_has_a_curve_of_its_own(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a curve of its own"):
        record_curve([results, results], bundle, tmp_path, ME)


def test_results_of_other_weights(
    bundle: Bundle, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factual_forgetting.board.making._weights", lambda *_: "0" * 64)
    with pytest.raises(InputError, match=r"is of other weights than .* Score it again"):
        make_record(results, bundle, tmp_path, ME)


def test_a_run_on_another_bundle(runs: list[Path], tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "bundle", heldout=24)
    with pytest.raises(InputError, match=r"trained on another bundle than .* Give --bundle"):
        make_record(runs[0], other, tmp_path, ME)


def test_heldout_is_said_of_data_that_is_told(
    bundle: Bundle, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factual_forgetting.board.making.told_by_run", lambda _: None)
    told = {"method": "own", "trained": True, "heldout": "excluded"}
    with pytest.raises(InputError, match="Say with --training_data what that was"):
        make_record(results, bundle, tmp_path, ME.model_copy(update=told))


def test_rows_are_counted(world: Bundle, tmp_path: Path) -> None:
    path = publish(tmp_path, world, drawn(world, 1, 0.3, 0.1))
    record, outcomes = load_record(path)
    written = write_record(
        tmp_path / "short",
        record.model_dump(mode="json"),
        [one.model_dump() for one in outcomes[1:]],
    )
    content = files.read_json(written)
    content["outcomes"]["rows"] += 1
    files.write_json(written, content)
    with pytest.raises(InputError, match=r"has 59 rows, not 60\."):
        load_record(written)


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Write one with factual-forgetting record"):
        find_records(tmp_path)
