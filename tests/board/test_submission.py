"""The shell steps of the workflow that checks a pull request, on submissions right and wrong."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import HELDOUT, answered_record, drawn, make_bundle, write_run
from workflow import failing_step

from factual_forgetting import files
from factual_forgetting.board import making, submission
from factual_forgetting.board.bundles import make_official
from factual_forgetting.board.form import record_id
from factual_forgetting.board.record import MAINTAINERS, find_records, load_record
from factual_forgetting.board.submission import check
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.protocol.curve import METRIC_OF_SPLIT
from factual_forgetting.scoring.results import Results
from factual_forgetting.scoring.styles import FEWSHOT, TASK


@pytest.fixture
def board_of(world: Bundle, runs: list[Path], tmp_path: Path) -> Path:
    """A directory with a main branch, and with one that adds a record to it."""
    trusted = tmp_path / "trusted/leaderboard"
    make_official(world, trusted / "bundles", "v1")
    files.write_json(trusted / MAINTAINERS, {})
    answered_record(runs[0], world, trusted / "records")
    shutil.copytree(trusted, tmp_path / "submitted/leaderboard")
    answered_record(runs[1], world, tmp_path / "submitted/leaderboard/records")
    return tmp_path


def refusing(where: Path) -> str | None:
    """The step of the workflow that refuses the submission."""
    told = {"GITHUB_STEP_SUMMARY": str(where / "summary.md")}
    return failing_step("submission.yml", "validate", where, **told)


def added(where: Path) -> Path:
    """The record that the submission adds."""
    there = {path.name for path in find_records(where / "trusted/leaderboard/records")}
    submitted = find_records(where / "submitted/leaderboard/records")
    return next(path for path in submitted if path.name not in there)


def new_bundle(where: Path) -> Path:
    """Adds a bundle that isn't on the board, and a record on it; returns its folder there."""
    bundle = make_bundle(where / "bundle", heldout=24)
    run = write_run(where / "run", bundle, drawn(bundle, 7, 0.3, 0.05))
    leaderboard = where / "submitted/leaderboard"
    answered_record(run, bundle, leaderboard / "records")
    return make_official(bundle, leaderboard / "bundles", "v2").parent


def older_main(where: Path) -> None:
    (where / "trusted/leaderboard" / MAINTAINERS).unlink()


@pytest.mark.parametrize("change", [lambda where: None, new_bundle, older_main])
def test_what_is_right_passes(board_of: Path, change: Callable[[Path], object]) -> None:
    change(board_of)
    assert refusing(board_of) is None
    assert (board_of / "summary.md").read_text()


def edit_published(where: Path) -> None:
    path = next(iter(find_records(where / "trusted/leaderboard/records")))
    path = where / "submitted" / path.relative_to(where / "trusted")
    files.write_json(path, {**files.read_json(path), "note": "better"})


def remove_published(where: Path) -> None:
    path = next(iter(find_records(where / "trusted/leaderboard/records")))
    (where / "submitted" / path.relative_to(where / "trusted")).unlink()


def raise_level(where: Path) -> None:
    path = where / "submitted/leaderboard" / MAINTAINERS
    files.write_json(path, {added(where).stem: "reproduced"})


def raise_level_of_an_older_main(where: Path) -> None:
    older_main(where)
    raise_level(where)


def change_bundle(where: Path) -> None:
    path = where / "submitted/leaderboard/bundles/almanac/v1" / f"{HELDOUT}.jsonl"
    path.write_text(path.read_text() + "\n")


def link_published(where: Path) -> None:
    records = where / "submitted/leaderboard/records"
    (folder,) = records.iterdir()
    shutil.move(folder, where / "submitted/elsewhere")
    folder.symlink_to(where / "submitted/elsewhere")


PUBLISHED = [
    edit_published, remove_published, link_published, raise_level, raise_level_of_an_older_main,
    change_bundle,
]  # fmt: skip


@pytest.mark.parametrize("change", PUBLISHED)
def test_what_is_published_stays(board_of: Path, change: Callable[[Path], None]) -> None:
    change(board_of)
    assert refusing(board_of) == "Validate"
    if change is change_bundle:
        return  # Whose files are checked before anything is read of it.
    records = board_of / "submitted/leaderboard/records"
    found = check(records, [], board_of / "trusted/leaderboard")
    assert "published" in {finding.check for finding in found}


def forge_metric(where: Path) -> None:
    content = files.read_json(added(where))
    content["metrics"]["stability"]["value"] = 1.0
    assert record_id(content) == content["id"]
    files.write_json(added(where), content)


def unknown_bundle(where: Path) -> None:
    shutil.rmtree(new_bundle(where))


def forge_reference(where: Path) -> None:
    path = new_bundle(where) / "reference.json"
    files.write_json(path, {**files.read_json(path), "majority_micro": 0.9})


def forge_facts(where: Path) -> None:
    path = new_bundle(where) / f"{HELDOUT}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def claim_a_name(where: Path) -> None:
    home = where / "submitted/leaderboard/bundles"
    shutil.copytree(home / "almanac/v1", home / "almanac/v9")
    path = home / "almanac/v9/reference.json"
    files.write_json(path, {**files.read_json(path), "name": "almanac/v9"})


FORGED = [forge_metric, unknown_bundle, forge_reference, forge_facts, claim_a_name]


@pytest.mark.parametrize("change", FORGED)
def test_what_is_forged_is_refused(board_of: Path, change: Callable[[Path], None]) -> None:
    change(board_of)
    assert refusing(board_of) == "Validate"


def test_where_official_bundles_are(
    board_of: Path, world: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    home = board_of / "submitted/leaderboard/bundles"
    other = make_bundle(board_of / "bundle", heldout=24)
    dataset = f"me/facts@{'a' * 40}"
    assert (
        main(
            [
                "official",
                str(other.path),
                "--version",
                "v2",
                "--dataset",
                dataset,
                "--bundles",
                str(home),
            ]
        )
        == 0
    )
    assert not (home / f"almanac/v2/{HELDOUT}.jsonl").exists()
    capsys.readouterr()
    assert main(["official", "--bundles", str(home)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"almanac/v1\t{world.sha256[:12]}\t{home / 'almanac/v1'}",
        f"almanac/v2\t{other.sha256[:12]}\t{dataset}",
    ]


def test_a_dataset_needs_its_whole_commit(
    world: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--dataset", "me/facts@main", "--bundles", str(tmp_path)]
    assert main(["official", str(world.path), *told]) == 1
    assert "dataset" in capsys.readouterr().err


def git(where: Path, *words: str) -> None:
    named = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run(["git", *named, *words], cwd=where, check=True, capture_output=True)


@pytest.fixture
def clone(world: Bundle, runs: list[Path], tmp_path: Path) -> Path:
    """A clone of a project that has published a record."""
    clone = tmp_path / "clone"
    make_official(world, clone / "leaderboard/bundles", "v1")
    answered_record(runs[0], world, clone / "leaderboard/records")
    git(clone, "init", "--initial-branch", "main")
    git(clone, "add", ".")
    git(clone, "commit", "--message", "published")
    return clone


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers everything right without a model; the names of what was scored."""
    scored = []

    def score(bundle: Bundle, _: str, name: str, folder: Path, **__: object) -> Path:
        scored.append(name)
        held = {
            item.fact.id: item.fact for split, item in bundle.items() if split in METRIC_OF_SPLIT
        }
        results = Results(
            path=folder / "results_1.json",
            style=FEWSHOT,
            pretrained=name,
            name=name,
            answers={key: fact.answers[0] for key, fact in held.items()},
            judgements={},
            correct=dict.fromkeys(held, True),
            weights_sha256="c" * 64,
            tokenizer_sha256=None,
            prompts_sha256="",
            asked_with={},
            descent_declared=False,
            environment={},
        )
        monkeypatch.setattr(making, "read_results", lambda *_: results)
        return folder

    monkeypatch.setattr(submission, "run_lm_eval", score)
    return scored


def submit(clone: Path, bundle: Bundle, *words: str) -> int:
    told = ["--bundle", str(bundle.path), "--submitter", "me", "--tasks", FEWSHOT]
    told += ["--output_path", str(clone.parent / "results")]
    told += ["--records", str(clone / "leaderboard/records")]
    names = [word for word in words[:1] if word == "other"]
    return main(["submit", "model", *names, *told, *words[len(names) :]])


INSTRUCT = ("--method", "instruct", "--no-trained")


def test_a_submission_is_scored_recorded_checked_and_compared(
    clone: Path, world: Bundle, scoring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(clone, world, *INSTRUCT) == 3  # Nobody declares what it was trained on.
    out, err = capsys.readouterr()
    written = Path(out.splitlines()[0])
    record, _ = load_record(written)
    assert (record.style, record.trained, record.method.name) == (FEWSHOT, False, "instruct")
    assert scoring == ["model"]
    assert "1 records added, 0 removed" in out
    assert "instruct" in out
    assert f"git switch --create submit-{record.id}" in err


def test_what_nobody_says_is_asked_before_scoring(
    clone: Path, world: Bundle, scoring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    two = ("other", "--curve", "--tasks", TASK)
    for words, told in (
        ((), "--method NAME"),
        (INSTRUCT[:2], "--trained, --no-trained"),
        (two, "--method NAME"),
        ((*two, *INSTRUCT), "two or more checkpoints of a run that trained"),
        ((*two[1:], *INSTRUCT[:2]), "two or more checkpoints"),
    ):
        assert submit(clone, world, *words) == 1
        assert told in capsys.readouterr().err
    assert not scoring


def test_a_bundle_has_to_be_official(
    clone: Path, scoring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_bundle(clone.parent / "other", heldout=24)
    assert submit(clone, other, *INSTRUCT) == 1
    assert f"factual-forgetting official {other.path}" in capsys.readouterr().err
    make_official(other, clone / "leaderboard/bundles", "v2")
    assert submit(clone, other, *INSTRUCT) == 3
    assert scoring == ["model"]


def test_a_submission_can_t_change_what_is_published(
    clone: Path, world: Bundle, scoring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = find_records(clone / "leaderboard/records")[0]
    files.write_json(path, {**files.read_json(path), "note": "better"})
    assert submit(clone, world, *INSTRUCT) == 1
    out, err = capsys.readouterr()
    assert "it is published, and was changed" in out
    assert "What is left" not in err
    assert scoring


@pytest.mark.parametrize("branch", [None, "nowhere", "--output=x"])
def test_what_it_is_compared_with_is_in_a_checkout(
    world: Bundle,
    clone: Path,
    scoring: list[str],
    capsys: pytest.CaptureFixture[str],
    branch: str | None,
) -> None:
    if branch is None:
        shutil.rmtree(clone / ".git")
    named = [f"--against={branch}"] if branch else []
    assert submit(clone, world, *INSTRUCT, *named) == 1
    assert "is in no checkout of git" in capsys.readouterr().err
    assert not scoring
    assert not (clone / "leaderboard/x").exists()
