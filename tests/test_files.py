from pathlib import Path

from factual_forgetting import files


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "curve.jsonl"
    files.write_jsonl(target, [1])
    (tmp_path / ".curve.jsonl.abc123").write_text("half")
    (tmp_path / ".other.jsonl.abc123").write_text("another's")
    files.remove_unfinished(target)
    assert {path.name for path in tmp_path.iterdir()} == {"curve.jsonl", ".other.jsonl.abc123"}
