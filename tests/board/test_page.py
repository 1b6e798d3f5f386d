import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting.board.board import Entry, make_board
from factual_forgetting.board.page import page, tell_records, write_page
from factual_forgetting.board.remake import remake_commands
from factual_forgetting.board.tables import LEGEND, markdown
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028$style ${x}"


class Elements(HTMLParser):
    """The tags of a page and the text of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)
            self._inside = False


def parsed(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    return elements


def test_the_page_needs_nothing_from_elsewhere(board: dict[str, Any]) -> None:
    text = page(board)
    elements = parsed(text)
    for tag, attributes in elements.tags:
        assert not (tag in {"script", "img", "iframe", "object"} and "src" in attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("href", "src"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "javascript"))
    assert len(elements.scripts) == 2
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


@pytest.mark.parametrize("field", ["method", "family", "protocol", "submitter", "level"])
def test_a_stranger_s_text_stays_text(board: dict[str, Any], field: str) -> None:
    hostile = json.loads(json.dumps(board))
    hostile["bundles"][0]["rows"][0][field] = HOSTILE
    hostile["bundles"][0]["base"] = HOSTILE
    elements, honest = parsed(page(hostile)), parsed(page(board))
    assert elements.tags[3:] == honest.tags[3:]
    summary = json.loads(elements.scripts[0])
    assert summary["bundles"][0]["rows"][0][field] == HOSTILE


def test_no_text_becomes_markup_in_the_script(board: dict[str, Any]) -> None:
    script = parsed(page(board)).scripts[1]
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_table_page_and_readme_tell_how_to_read_a_board_in_the_same_words(
    board: dict[str, Any],
) -> None:
    readme = (Path(__file__).parents[2] / "leaderboard" / "README.md").read_text("utf-8")
    shown, text = " ".join(readme.split()), markdown(board)
    pairs = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page(board))
    assert {unescape(term): unescape(meaning) for term, meaning in pairs} == LEGEND
    for term, meaning in LEGEND.items():
        assert f"- {term}: {meaning}" in shown
        assert f"- {term}: {meaning}\n" in f"{text}\n"


def test_the_legend_stays_text(board: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEGEND, "<b>", "a < b & $board")
    assert "<dt>&lt;b&gt;</dt><dd>a &lt; b &amp; $board</dd>" in page(board)


def test_what_is_written(
    records: Path, world: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["board", str(records), "--bundle", str(world.path), "--format", "html"]
    assert main(command) == 1
    assert "--output_path DIR" in capsys.readouterr().err
    for name in ("one", "two"):
        assert main([*command, "--output_path", str(tmp_path / name)]) == 0
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two
    assert {str(p) for p in one} >= {
        "index.html",
        "board.json",
        "board.parquet",
        f"data/facts-{world.sha256[:12]}.js",
    }
    assert len(one) == 3 + 1 + 4 + 12


def test_only_what_the_command_wrote_is_removed(
    entries: list[Entry], world: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "data"

    def write(kept: list[Entry]) -> set[str]:
        write_page(make_board(tell_records(kept, {}, tmp_path)), {}, tmp_path)
        return {path.name for path in folder.iterdir()}

    before = write(entries)
    strangers = {"notes.js": "factualForgetting(1)", f"record-{'0' * 16}.js": "mine", "CNAME": "x"}
    for name, text in strangers.items():
        (folder / name).write_text(text)
    fewer = [entry for entry in entries if entry[0].method.name != "freeze"]
    assert write(fewer) - strangers.keys() < before
    assert strangers.keys() <= {path.name for path in folder.iterdir()}
    gone = {f"record-{record.id}.js" for record, _ in entries if record.method.name == "freeze"}
    assert not gone & {path.name for path in folder.iterdir()}
    # A record that is superseded has no file either.
    assert write(entries) - strangers.keys() == before


def test_a_row_s_data_tells_facts_lost_and_learned(
    entries: list[Entry], world: Bundle, board: dict[str, Any], tmp_path: Path
) -> None:
    assert [record.id for record, _ in tell_records(entries, {world.sha256: world}, tmp_path)]
    write_page(board, {world.sha256: world}, tmp_path)
    by_id = {record.id: rows for record, rows in entries}
    written = list((tmp_path / "data").glob("record-*.js"))
    assert len(written) == len(entries)
    for path in written:
        call = re.fullmatch(r'factualForgetting\("record-[0-9a-f]+",(.*)\)\n', path.read_text())
        assert call
        part = json.loads(call[1])
        rows = by_id[part["id"]]
        wrong = [r for r in rows if r.split == "heldout" and not r.final]
        right = [r for r in rows if r.split == "unknown" and r.final]
        assert (len(part["lost"]), len(part["learned"])) == (len(wrong), len(right))


def test_without_the_bundle_facts_have_numbers_only(board: dict[str, Any], tmp_path: Path) -> None:
    write_page(board, {}, tmp_path)
    (facts,) = (tmp_path / "data").glob("facts-*.js")
    assert facts.read_text().endswith(",null)\n")


def test_a_record_s_commands_stay_text(
    entries: list[Entry], board: dict[str, Any], tmp_path: Path
) -> None:
    (record, rows), *_ = entries
    method = record.method.model_copy(update={"settings": {"a": "$(rm -rf ~); `x` '"}})
    hostile = record.model_copy(update={"method": method})
    assert list(tell_records([(hostile, rows)], {}, tmp_path))
    (path,) = (tmp_path / "data").glob("record-*.js")
    part = json.loads(path.read_text().partition(",")[2].removesuffix(")\n"))
    assert part["command"].splitlines() == remake_commands(hostile)
    (train,) = (line for line in part["command"].splitlines() if " finetune " in line)
    assert json.loads(shlex.split(train)[-5])["a"] == "$(rm -rf ~); `x` '"
