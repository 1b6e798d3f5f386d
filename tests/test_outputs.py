"""Outputs are checked before any work: nothing of other origin is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factual_forgetting import cli, files, outputs, plotting
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError, disk_trouble
from stub import many_facts

ROOT = Path(__file__).parents[1]
# Every command that writes, up to its output; the works that it would do are not begun.
WRITERS = {
    "facts": ("facts", "almanac", "--output_path"),
    "classify": ("classify", "--output_path"),
    "build": ("bundle", "build", "no-labels", "--output_path"),
    "export": ("bundle", "export", "almanac", "--output_path"),
    "finetune": ("finetune", "--bundle", "almanac", "--method", "sft", "--output_path"),
    "pretrain": ("pretrain", "--output_path"),
    "demo": ("demo", "--output_path"),
    "drift": ("drift", "almanac", "almanac", "--output_path"),
    "interference": ("interference", "--output_path"),
    "score": ("score", "--model_args", "almanac", "--output_path"),
    "frontier": ("frontier", "no-run", "--output_path"),
    "record": ("record", "no-run", "--submitter", "me", "--output_path"),
    "official": ("official", "almanac", "--bundles"),
    "exports": ("export", "no-records", "--to", "every_eval_ever", "--output_path"),
    "page": ("board", "no-records", "--format", "html", "--output_path"),
    "plot": ("board", "no-records", "--plot"),
}
SUFFIXES = {"export": ".jsonl", "drift": ".png", "frontier": ".svg", "plot": ".png"}


def refused(capsys: pytest.CaptureFixture[str], name: str, output: object) -> str:
    assert main([*WRITERS[name], f"{output}"]) == 1
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if line.startswith("factual-forgetting:")]
    assert "Traceback" not in told
    assert "--output_path" in line or "Rename it" in line
    return line


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("name", WRITERS)
def test_outputs_that_cannot_be(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = SUFFIXES.get(name, "")
    (tmp_path / "file").write_text("mine")
    assert "is no folder" in refused(capsys, name, tmp_path / "file" / f"out{end}")
    assert "is no folder" in refused(capsys, name, f"/dev/null/out{end}")
    assert "can be written" in refused(capsys, name, f"/proc/out/put{end}")
    assert "too long" in refused(capsys, name, tmp_path / f"{'long' * 80}{end}")
    assert "not UTF-8" in refused(capsys, name, tmp_path / f"\udcff{end}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", sorted(set(WRITERS) - set(SUFFIXES)))
def test_a_folder_that_is_a_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is no folder" in refused(capsys, name, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(SUFFIXES))
def test_a_file_that_is_a_folder_or_of_another_kind(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"there{SUFFIXES[name]}").mkdir()
    assert "no regular file" in refused(capsys, name, tmp_path / f"there{SUFFIXES[name]}")
    refused(capsys, name, "/dev/null")
    assert Path("/dev/null").is_char_device()


# What lies there, under a name that the command would write.
OTHERS = [
    *(("facts", name) for name in ("facts.jsonl", "dropped.json", "account.json", "account.png")),
    *(("classify", name) for name in (
        "parts/mine.txt", "facts.jsonl", "labels.jsonl", "manifest.json", "redraw/mine.txt")),
    ("build", "known.jsonl"), ("build", "README.md"),
    *(("finetune", name) for name in (
        "resume/mine.txt", "best/mine.txt", "tokenizer.json", "model.safetensors", "curve.jsonl")),
    *(("pretrain", name) for name in ("README.md", "exposures.jsonl", "tokenizer.json")),
    ("demo", "board.json"), ("demo", "frontier.png"),
    ("interference", "at-0.9/mine.txt"),
    ("score", "report_factual_forgetting.json"),
    ("official", "almanac/v1/mine.txt"),
    ("page", "index.html"), ("page", "board.json"), ("page", "board.parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "there"), OTHERS)
def test_files_of_others_in_a_folder_stay(
    name: str,
    there: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if name == "build":
        request.getfixturevalue("labels_of_small_world")
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    refused(capsys, name, tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.fixture
def labels_of_small_world(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    from factual_forgetting.bundle import command
    from small import make_labels

    facts, base = request.getfixturevalue("facts"), request.getfixturevalue("base")
    monkeypatch.setattr(command, "load_labels", lambda path: make_labels(facts, base))
    sizes = ("--known", "24", "--unknown", "24", "--heldout", "16", "--validation", "4")
    words = ("bundle", "build", "labels", *sizes, "--replay", "4", "--output_path")
    monkeypatch.setitem(WRITERS, "build", words)


@pytest.mark.parametrize("name", ["drift", "frontier", "export", "plot"])
def test_a_file_of_others_stays(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"mine{SUFFIXES[name]}"
    output.write_text("{}")
    assert "didn't write it" in refused(capsys, name, output)
    assert output.read_text() == "{}"


@pytest.mark.parametrize("name", ["drift", "frontier"])
def test_the_numbers_beside_a_figure_replace_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write_json(tmp_path / "run.json", {"method": "sft"})
    told = refused(capsys, name, tmp_path / f"run{SUFFIXES[name]}")
    assert "run.json is there" in told
    assert files.read_json(tmp_path / "run.json") == {"method": "sft"}


def test_an_export_goes_over_an_export_and_over_no_bundle(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    argv = ["bundle", "export", str(copy), "--output_path"]
    assert main([*argv, str(copy / "known.jsonl")]) == 1
    assert "didn't write it" in capsys.readouterr().err
    assert main(["bundle", "check", str(copy)]) == 0
    assert main([*argv, str(tmp_path / "train.jsonl")]) == 0
    assert main([*argv, str(tmp_path / "train.jsonl")]) == 0


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figures_of_ours_are_told_from_others(suffix: str, tmp_path: Path) -> None:
    figure, path = plotting.new_figure(2, 2), tmp_path / f"figure{suffix}"
    figure.subplots().plot([1, 2])
    plotting.save_figure(figure, path)
    plotting.require_image(path)
    figure.savefig(path)  # as anyone would
    with pytest.raises(UserError, match="didn't write it"):
        plotting.require_image(path)


def test_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files.write_jsonl(tmp_path / "mine.jsonl", [fact.row() for fact in many_facts(1, 9)])
    assert main(["facts", "~/mine.jsonl", "--output_path=~/out"]) == 0
    assert (tmp_path / "out" / "facts.jsonl").is_file()
    assert not Path("~").exists()
    assert main(["facts", "~/mine.jsonl", "--output_path=~nobody-of-that-name/out"]) == 1
    assert "Write the whole path" in capsys.readouterr().err


def test_a_dataset_in_a_folder_has_no_revision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    assert main(["facts", f"datasets:{tmp_path / 'data'}@v1"]) == 1
    assert "which has no revisions" in capsys.readouterr().err


def test_deep_paths_give_folders_that_can_be() -> None:
    from factual_forgetting.scoring.score import _folder

    deep = "__".join(["checkpoint"] * 60)
    assert len(_folder(Path("out"), deep, {"config": {}, "configs": {}}).encode()) < 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bundle", "export", "almanac", "--output_path", str(small_disk / "train.jsonl")]
    assert main(argv) == 1  # fills it: the export is larger
    assert "No space is left on the disk" in capsys.readouterr().err
    assert not any(small_disk.iterdir())
    with (small_disk / "mine").open("wb") as stream, pytest.raises(OSError, match="space"):
        stream.write(bytes(1 << 20))
    assert main(argv) == 1
    assert "Nothing can be written" in capsys.readouterr().err


def test_faults_of_the_disk_are_told_once_with_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*given: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied", "/there/mine.json")

    monkeypatch.setattr(files, "dumps", fails)
    assert main(["env"]) == 1
    assert "/there/mine.json: Permission denied" in capsys.readouterr().err
    assert disk_trouble(ValueError("a fault of the program")) is None


def test_a_console_that_knows_little(tmp_path: Path) -> None:
    row = {"relation": "city", "question": "Where is the Old Mill?", "answers": ["Łódź 日"]}
    files.write_jsonl(tmp_path / "f.jsonl", [row])
    given = {"PYTHONPATH": str(ROOT / "benchmark"), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "factual_forgetting.cli", "facts", str(tmp_path / "f.jsonl")],
        env={**os.environ, **given}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Łódź 日" in done.stdout.decode("utf-8")


def interrupt(*given: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_only_what_resumes_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from factual_forgetting.facts import command
    from factual_forgetting.slick import command as slick

    monkeypatch.setattr(command, "clean_source", interrupt)
    assert main(["facts", "almanac"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "factual-forgetting: interrupted.\n"
    monkeypatch.setattr(slick, "facts_from_arguments", interrupt)
    assert main(["classify", "--output_path", str(tmp_path / "l")]) == cli.INTERRUPTED
    assert "The same command resumes" in capsys.readouterr().err


def test_an_interrupt_while_importing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "parser", interrupt)
    assert main(["board"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "factual-forgetting: interrupted.\n"
    code = "import sys, factual_forgetting.cli; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmark")}
    loaded = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "factual_forgetting.board" not in loaded.stdout  # what takes time comes later


AT_WORK = """
import signal, sys
from pathlib import Path
from factual_forgetting.outputs import taken
with taken(Path(sys.argv[1])):
    print("taken", flush=True)
    signal.pause()
"""


def test_no_merge_under_workers_that_still_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*WRITERS["classify"], str(tmp_path), "--merge", "--quota", "known=1"]
    with outputs.taken(tmp_path, shared=True):
        assert main(argv) == 1
    assert "Another command is at work" in capsys.readouterr().err


def test_two_that_build_one_bundle(tmp_path: Path) -> None:
    with files.atomic_directory(tmp_path / "bundle") as first:
        (first / "mine").write_text("1")
        twice = files.atomic_directory(tmp_path / "bundle")
        with pytest.raises(UserError, match="at work"), twice:
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "mine"]


LOCKED = ["classify", "finetune", "pretrain", "score", "demo", "facts"]


@pytest.mark.parametrize("name", LOCKED)
def test_two_at_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmark")}
    argv = [sys.executable, "-c", AT_WORK, str(tmp_path / "out")]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "taken\n"
        assert "Another command is at work" in refused(capsys, name, tmp_path / "out")
        first.send_signal(signal.SIGKILL)
    with outputs.taken(tmp_path / "out"):
        pass


def test_labels_that_were_begun_are_ours(tmp_path: Path) -> None:
    from factual_forgetting.slick.classify import _begun_there

    (tmp_path / "parts").mkdir()
    assert _begun_there(tmp_path)  # killed before it could say more
    (tmp_path / "parts" / "mine.txt").write_text("mine")
    assert not _begun_there(tmp_path)
    files.write_json(tmp_path / "parts" / "identity.json", {"facts_sha256": "0"})
    assert _begun_there(tmp_path)


FORBIDDEN = set('<>:"\\|?*')
RESERVED = {"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(1, 10))}


def legal(name: str) -> bool:
    """Whether Windows and macOS take a name, too."""
    stem = name.split(".")[0].lower()
    ends = name.endswith((".", " "))
    return not (FORBIDDEN & set(name) or stem in RESERVED or ends or min(map(ord, name)) < 32)


def test_names_are_legal_on_windows_and_macos(bundle: Bundle, sft: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    tracked = [name for name in listed.stdout.split("\0") if name]
    made = [str(p.relative_to(of)) for of in (bundle.path, sft) for p in of.rglob("*")]
    assert [name for name in (*tracked, *made) if not all(map(legal, name.split("/")))] == []
    assert len({name.lower() for name in tracked}) == len(tracked)
    assert max(map(len, tracked)) < 200


def test_names_of_strangers_are_made_legal() -> None:
    from factual_forgetting.board.form import slug
    from factual_forgetting.scoring.score import _folder

    for name in ("con", "AUX", "nul.txt", "com1", "a.", "a ", "x/nul", 'a<b>:"c|?*', "..", "\n"):
        assert legal(slug(name))
    for name in ("con", "Nul.x", "a.", "a "):
        assert not legal(name)
        assert legal(files.portable(name))
        assert legal(_folder(Path("out"), name, {"config": {}, "configs": {}}))
    for name in ("console", "almanac", "v1.0", "common.json"):
        assert files.portable(name) == name


def test_no_official_bundle_differs_from_another_in_case_alone(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["official", str(bundle.path), "--bundles", str(tmp_path)]
    assert main([*argv, "--version", "V1"]) == 0
    assert main([*argv, "--version", "v1"]) == 1
    assert "where names have no case" in capsys.readouterr().err
