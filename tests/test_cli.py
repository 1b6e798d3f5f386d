import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command that must fail as a user's mistake does; returns its one line."""
    assert main([str(part) for part in argv]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("factual-forgetting:")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", ["--help", "validate", "board"])
def test_what_trains_and_scores_nothing_needs_no_torch(command: str, tmp_path: Path) -> None:
    records = ROOT / "leaderboard" / "records"
    some = next((records / "almanac").rglob("*.json")).parent.relative_to(records)
    shutil.copytree(records / some, tmp_path / some)
    argv = [command] if command == "--help" else [command, str(tmp_path)]
    code = (
        "import sys\n"
        "from factual_forgetting.cli import main\n"
        f"try:\n    assert main({argv}) == 0\nexcept SystemExit: pass\n"
        "names = ['torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib']\n"
        "heavy = set(names) & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    path = str(ROOT / "benchmark")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0


def test_usage_errors_exit_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune"])
    assert stopped.value.code == 2


def test_a_missing_fact_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = fails(capsys, "classify", "--facts", tmp_path / "no.jsonl", "--output_path", tmp_path)
    assert "no.jsonl" in told


def test_a_malformed_fact_file_names_the_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = '{"relation": "r", "question": "Where is X?", "answers": ["Y"]}\n'
    (tmp_path / "facts.jsonl").write_text(good + "{broken\n")
    told = fails(
        capsys, "classify", "--facts", tmp_path / "facts.jsonl", "--output_path", tmp_path / "l"
    )
    assert "line 2" in told
    assert not (tmp_path / "l").exists()


def test_an_unknown_relation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = fails(capsys, "classify", "--relations", "colour", "--output_path", tmp_path / "l")
    assert "no relation colour" in told
    assert "place_of_birth" in told


def test_an_unknown_method(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    told = fails(
        capsys,
        *(
            "finetune",
            "--bundle",
            bundle.path,
            "--method",
            "magic",
            "--output_path",
            tmp_path / "r",
        ),
    )
    assert "Unknown method 'magic'. There are sft" in told


def test_an_unknown_key_in_a_protocol(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nlearning_rat: 1e-5\n")
    told = fails(
        capsys,
        *("finetune", "--bundle", bundle.path, "--method", "sft"),
        *("--protocol", tmp_path / "mine.yaml", "--output_path", tmp_path / "r"),
    )
    assert "unknown key 'learning_rat'" in told
    assert not (tmp_path / "r").exists()


def test_an_unknown_setting_of_a_method(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    told = fails(
        capsys,
        *("finetune", "--bundle", bundle.path, "--method", "self_distillation"),
        *("--method_args", "teacher=base,temperature=2", "--output_path", tmp_path / "r"),
    )
    assert "unknown key 'temperature' (known: direction, positions, tau, teacher, weight)" in told


def test_a_changed_bundle(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    for file in bundle.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b"dev", b"Dev"))
    told = fails(capsys, "bundle", "check", tmp_path)
    assert "was changed" in told


def test_a_checkpoint_without_weights(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    told = fails(
        capsys,
        *("score", "--model_args", tmp_path, "--bundle", bundle.path),
        *("--output_path", tmp_path / "r"),
    )
    assert "holds no weights" in told
    assert not (tmp_path / "r").exists()


def test_a_base_without_any_known_fact(
    capsys: pytest.CaptureFixture[str], base: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "relation": "r",
            "subject": f"Xan{i}",
            "question": f"Where is Xan{i}?",
            "answers": [f"Y{i}"],
        }
        for i in range(60)
    ]
    files.write_jsonl(tmp_path / "facts.jsonl", rows)
    told = fails(
        capsys,
        *("classify", "--facts", tmp_path / "facts.jsonl", "--model_args", f"pretrained={base}"),
        *("--output_path", tmp_path / "labels"),
    )
    assert "answers none of" in told


def test_too_few_facts(capsys: pytest.CaptureFixture[str], base: Path, tmp_path: Path) -> None:
    rows = [
        {"relation": "r", "subject": f"Xan{i}", "question": f"Where is Xan{i}?", "answers": ["Y"]}
        for i in range(8)
    ]
    files.write_jsonl(tmp_path / "facts.jsonl", rows)
    told = fails(
        capsys,
        *("classify", "--facts", tmp_path / "facts.jsonl", "--model_args", f"pretrained={base}"),
        *("--output_path", tmp_path / "labels"),
    )
    assert "training facts" in told


def test_results_of_another_bundle(
    capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path
) -> None:
    given = ("--bundle", "almanac", "--submitter", "me", "--output_path", tmp_path / "r")
    told = fails(capsys, "record", results, *given)
    assert "another bundle" in told
    assert not (tmp_path / "r").exists()


def test_a_stranger_scored_without_a_bundle(
    capsys: pytest.CaptureFixture[str], base: Path, tmp_path: Path
) -> None:
    told = fails(capsys, "score", "--model_args", base, "--output_path", tmp_path / "r")
    assert "does not descend from the base" in told
    assert "--bundle" in told
