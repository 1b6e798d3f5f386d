"""What is published of a board: the workflow that builds it, its table, and where it links to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from synthetic import answered_record
from workflow import failing_step, read_workflow

from factual_forgetting import files
from factual_forgetting.board.board import Entry, make_board
from factual_forgetting.board.bundles import make_official
from factual_forgetting.board.dataset import TABLE, write_table
from factual_forgetting.board.form import UNSTATED
from factual_forgetting.board.links import Links
from factual_forgetting.board.page import page, tell_records, write_page
from factual_forgetting.board.record import MAINTAINERS, find_records
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import InputError

HOME = "https://git.example/me/board/tree/0123/leaderboard"
DATASET = f"me/facts@{'a' * 40}"
RUNNER = {
    "GITHUB_SERVER_URL": "https://git.example",
    "GITHUB_REPOSITORY": "me/board",
    "GITHUB_SHA": "0123",
}


@pytest.fixture
def leaderboard(world: Bundle, runs: list[Path], tmp_path: Path) -> Path:
    home = tmp_path / "leaderboard"
    make_official(world, home / "bundles", "v1")
    files.write_json(home / MAINTAINERS, {})
    for run in runs[:6]:
        answered_record(run, world, home / "records")
    return home


def summary(index: Path) -> dict[str, Any]:
    found = re.search(r'id="board">(.*?)</script>', index.read_text("utf-8"), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_the_workflow_builds_page_and_data(leaderboard: Path, world: Bundle) -> None:
    where = leaderboard.parent
    assert failing_step("page.yml", "build", where, **RUNNER) is None
    (bundle,) = summary(where / "site/index.html")["bundles"]
    assert bundle["links"] == [["Base", None], ["Bundle", f"{HOME}/bundles/almanac/v1"]]
    assert {row["by"] for row in bundle["rows"]} == {"https://git.example/me"}
    # Every address of records is a folder that the repository has.
    for row in bundle["rows"]:
        assert (where / "leaderboard" / row["source"].removeprefix(f"{HOME}/")).is_dir()
    rows = table(where / "site" / TABLE)
    assert {row["bundle"] for row in rows} == {world.sha256}
    assert rows["records"] == [
        row["records"] for row in files.read_json(where / "site/board.json")["bundles"][0]["rows"]
    ]
    # The facts of official bundles are told.
    (facts,) = (where / "site/data").glob("facts-*.js")
    assert "of Heldout 1?" in facts.read_text()


def test_what_does_not_hold_is_not_published(leaderboard: Path) -> None:
    path = find_records(leaderboard / "records")[0]
    content = files.read_json(path)
    content["metrics"]["stability"]["value"] = 1.0
    files.write_json(path, content)
    assert failing_step("page.yml", "build", leaderboard.parent, **RUNNER) == "Validate"
    assert not (leaderboard.parent / "site").exists()


def test_the_workflow_may_publish_and_nothing_else() -> None:
    workflow = read_workflow("page.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["build"]
    assert workflow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}


def table(path: Path) -> datasets.Dataset:
    found = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
    )
    assert isinstance(found, datasets.Dataset)
    return found


def test_the_table_has_the_same_types_whatever_it_holds(
    board: dict[str, Any], entries: list[Entry], tmp_path: Path
) -> None:
    without_curve = [
        (
            record.model_copy(update={"curve": [], "seed": None}),
            [one.model_copy(update={"curve": ""}) for one in outcomes],
        )
        for record, outcomes in entries[:1]
    ]
    boards = {"full": board, "bare": make_board(without_curve)}
    found = {}
    for name, one in boards.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / TABLE).open("wb") as stream:
            write_table(one, stream)
        found[name] = table(tmp_path / name / TABLE)
    assert found["full"].features == found["bare"].features
    rows = [row for bundle in board["bundles"] for row in bundle["rows"]]
    assert len(found["full"]) == len(rows)
    for told, row in zip(found["full"], rows, strict=True):
        assert told["base"] == "almanac"
        for key in row.keys() - {"curve", "rank", "unranked"}:
            assert told[key] == row[key], key
        assert [point["stability"] for point in told["curve"]] == [
            point["stability"] for point in row["curve"]
        ]
        assert {key: told["rank"][key] for key in row["rank"]} == row["rank"]
    # What a board says of a row is in the table, and nothing is dropped unseen.
    assert {*rows[0]} <= {*found["full"].features}


def test_links_lead_to_https_and_only_there(world: Bundle, tmp_path: Path) -> None:
    make_official(world, tmp_path / "bundles", "v1", DATASET)
    links = Links.beside(tmp_path / "records", f"{HOME}/")
    assert links.bundle(world.sha256) == f"https://huggingface.co/datasets/me/facts/tree/{'a' * 40}"
    assert links.bundle("0" * 64) is None
    assert links.base("lab/model-1.5") == "https://huggingface.co/lab/model-1.5"
    for name in (
        None,
        "almanac",
        "/home/me/model",
        "../..",
        "a/b/c",
        "lab/m\u0456",
        "a/b?x",
        "a/b#x",
    ):
        assert links.base(name) is None
    assert links.submitter("me") == "https://git.example/me"
    assert links.submitter(UNSTATED) is None
    assert links.records("../<b>", "0" * 64, "sft") == f"{HOME}/records/b/{'0' * 12}/sft"
    bare = Links()
    assert (bare.submitter("me"), bare.records("a", "0" * 64, "b")) == (None, None)
    for home in ("http://git.example", "javascript:alert(1)", "https://a/?b", 'https://a/"'):
        with pytest.raises(InputError, match="--home is an https address"):
            Links.beside(tmp_path / "records", home)


def test_a_record_s_provenance_links(
    board: dict[str, Any], entries: list[Entry], world: Bundle, tmp_path: Path
) -> None:
    links = Links(HOME)
    record, outcomes = entries[0]
    record = record.model_copy(update={"repository": "lab/one", "url": "https://a.example/b"})
    assert list(tell_records([(record, outcomes)], {world.sha256: world}, tmp_path, links))
    (path,) = (tmp_path / "data").glob("record-*.js")
    told = json.loads(path.read_text().partition(",")[2].removesuffix(")\n"))
    linked = {name: url for name, _, url in told["provenance"] if url}
    assert linked["repository"] == "https://huggingface.co/lab/one"
    assert linked["told in"] == "https://a.example/b"
    assert linked["record"].startswith(f"{HOME}/records/almanac/")
    assert linked["submitter"] == "https://git.example/me"
    assert write_page(board, {}, tmp_path, links).is_file()
    assert HOME in page(board, links)
    assert HOME not in page(board)


def test_a_home_that_is_none_is_one_line(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--format", "html", "--output_path", str(tmp_path / "site"), "--home", "ftp://a"]
    assert main(["board", str(records), *given]) == 1
    assert capsys.readouterr().err.count("\n") == 1
