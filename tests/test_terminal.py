"""Others' text at the terminal, in tables, plots and datasheets: as it is, and nothing but text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tabulate import tabulate

from factual_forgetting import files
from factual_forgetting.bundle.datasheet import relations_by_split
from factual_forgetting.cli import main
from factual_forgetting.errors import InputError, one_line, visible
from factual_forgetting.facts.account import account, plot_account
from factual_forgetting.facts.sources import SourceOptions, clean_source
from factual_forgetting.scoring.frontier import draw_frontier
from factual_forgetting.terminal import note, shown, table, tell

HOSTILE = "\x1b]0;title\x07\x9b31m\x7f\u202egnp\u200b\u2028\ud800\U000e0041"


def test_what_moves_hides_or_turns_letters_is_written_out() -> None:
    assert visible("\x1b[2J\x9b\u202e") == r"\u001b[2J\u009b\u202e"
    assert visible(HOSTILE).isprintable()
    for honest in ("Gdańsk", "東京\u3000都", "São\u00a0Tomé", "naïve – 1\u202f000", "🙂"):
        assert visible(honest) == honest


def test_an_error_is_one_line_that_can_be_read() -> None:
    line = one_line(InputError(f"a\nb {HOSTILE} {'x' * 5000} end"))
    assert line.isprintable()
    assert line.startswith("a b ")
    assert line.endswith(" end")
    assert len(line) < 500


def test_lines_stay_lines_and_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"answer": "\x1b\x9b\u202e\u2028\U000e0041", "other": ["é", 1]}
    assert json.loads(shown(files.dumps(value, indent=2))) == value
    tell("one\ntwo\x1b")
    note("three\n\x9b")
    told = capsys.readouterr()
    assert told.out == "one\ntwo\\u001b\n"
    assert told.err == "three\\n\\u009b\n"


def test_in_a_table_a_text_is_no_number_and_no_border() -> None:
    rows = [["0017", 2, 0.5, "1969"], ["a|b\n", 10, None, "1e5"]]
    text = table(rows, ["relation", "facts", "share", "gold"], numbers=True)
    assert text.splitlines()[2:] == [
        "| 0017       |       2 |   0.500 | 1969   |",
        "| a\\|b\\n     |      10 |       - | 1e5    |",
    ]
    plain = [["a", 1], ["b", 22]]
    assert table(plain, ["x", "y"], numbers=True) == tabulate(plain, ["x", "y"], tablefmt="github")
    assert table([], ["x", "y"]).startswith("| x")


def test_relations_print_as_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("0017", "1e3", "$x_{a", "\x9b31m|<b>")
    rows = [
        {
            "relation": name, "question": f"What is {city} of {i}?", "answers": ["1969"],
            "subject": city,
        }
        for i, name in enumerate(names)
        for city in ("Aberdeen", "Bordeaux", "Catania")
    ]  # fmt: skip
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cleaned = clean_source(SourceOptions(facts=str(path)), may_be_empty=True)
    plot_account(account(cleaned), tmp_path / "account.png")
    status = main(["facts", str(path)])
    out = capsys.readouterr().out
    assert status == 0
    assert "\x9b" not in out
    assert "\n0017 " in out
    assert "\n1e3 " in out
    assert "1969.0" not in out


def test_names_in_plots_are_no_formulas(tmp_path: Path) -> None:
    curve = [(0.0, 1.0), (1.0, 0.5)]
    draw_frontier([("$x_{a", [curve]), ("\x1b_$$", [curve])], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size


def test_a_datasheet_has_no_markup_of_strangers() -> None:
    text = relations_by_split({"relations": {"known": {"<script>x</script>|": 1, "1969": 2}}})
    assert "<" not in text
    assert "| 1969 " in text


def test_a_path_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["facts", "x\x1b[31m\n.jsonl"]) == 1
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert told.count("\n") == 1
