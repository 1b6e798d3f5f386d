"""From a checkpoint to files that can be merged, and what a pull request with them is asked."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from factual_forgetting import checkpoint, files
from factual_forgetting.board.board import make_board
from factual_forgetting.board.bundles import (
    bundles_at_hand,
    fetch_official,
    official,
    references_for,
)
from factual_forgetting.board.form import slug
from factual_forgetting.board.making import (
    Declared,
    make_record,
    of_curve,
    record_curve,
    require_declared,
)
from factual_forgetting.board.record import MAINTAINERS, load_records, maintained
from factual_forgetting.board.tables import diff
from factual_forgetting.board.validate import Finding, check_references, validate
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import run_lm_eval

_MAIN = ("upstream/main", "origin/main", "main")


def check(records: Path, bundles: Sequence[str], before: Path | None = None) -> list[Finding]:
    """Checks a leaderboard as its pull requests are checked.

    Args:
        records: Its records, beside `bundles/` and the maintainers' file.
        bundles: Bundles that aren't official, named as `locate_bundle` takes them.
        before: The leaderboard that it was made of, whose files have to be there unchanged.

    Raises:
        UserError: If the facts of an official bundle are out of reach.
    """
    folder = records.parent / "bundles"
    named = official(folder) if folder.is_dir() else None
    there = bundles_at_hand(bundles)
    there |= fetch_official(folder, there)
    found = [*validate(records, there, named), *check_references(named or {}, there)]
    return found + list(_changed(before, records.parent) if before else ())


def _changed(before: Path, after: Path) -> Iterator[Finding]:
    """What is published stays as it is; records and bundles may be added."""
    published = (path for part in ("bundles", "records") for path in (before / part).rglob("*"))
    for path in sorted(published):
        now = after / path.relative_to(before)
        linked = now.resolve() != after.resolve() / path.relative_to(before)
        if path.is_file() and (linked or not _same(path, now)):
            told = "it is published, and was changed or removed. Put it back; add beside it."
            yield Finding("published", "error", str(now), told)
    with suppress(UserError):  # Which `validate` tells.
        if maintained(before / "records") != maintained(after / "records"):
            told = "levels are said by maintainers, in changes of their own."
            yield Finding("published", "error", str(after / MAINTAINERS), told)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def change(before: Path, after: Path, bundles: Mapping[str, Bundle]) -> dict[str, Any]:
    """Compares the boards of two directories of records; see `diff`."""
    boards = (
        make_board(load_records(one), references_for(one, dict(bundles))) for one in (before, after)
    )
    return diff(*boards)


def write_published(leaderboard: Path, reference: str | None, output: Path) -> None:
    """Writes a leaderboard as it stands in another state of its repository.

    Args:
        leaderboard: Its directory in a checkout of git.
        reference: Branch or commit; None for the main branch as it was fetched last.
        output: Directory to write to.

    Raises:
        UserError: If there is no checkout, or nothing of that name in it.
    """
    for name in [reference] if reference else _MAIN:
        # A name that could be an option is none of a branch.
        archive = ["git", "archive", "--format=tar", name.lstrip("-"), "."]
        with suppress(FileNotFoundError, NotADirectoryError):
            made = subprocess.run(archive, cwd=leaderboard, capture_output=True, check=False)
            if made.returncode == 0:
                with tarfile.open(fileobj=io.BytesIO(made.stdout)) as content:
                    content.extractall(output, filter="data")
                return
    raise InputError(
        f"{leaderboard} is in no checkout of git with {reference or 'a branch main'}. Clone the "
        "project, or your fork of it, and call this there; --against names another branch."
    )


def submit(
    checkpoints: Sequence[str],
    bundle: Bundle,
    records: Path,
    declared: Declared,
    output: Path,
    *,
    curve: bool,
    style: str,
    **scoring: Any,
) -> list[Path]:
    """Scores checkpoints and records them; tells the records' paths.

    A checkpoint that was scored there before isn't scored again.

    Args:
        checkpoints: Paths, or arguments of lm-eval's `hf`.
        bundle: An official bundle of `records`.
        records: Directory of records.
        declared: What the checkpoints don't say.
        output: Directory for lm-eval's results.
        curve: Whether they are of one run, and one record.
        style: Key of `STYLES`: how to ask.
        scoring: `batch_size`, `device` and `descends` as `run_lm_eval` takes them.

    Raises:
        UserError: If the bundle isn't official there, or a checkpoint can't be recorded.
    """
    if bundle.sha256 not in official(records.parent / "bundles"):
        raise InputError(
            f"{bundle.path} is no official bundle of {records.parent}. Make it one, in the same "
            f"pull request, with: factual-forgetting official {bundle.path}"
        )
    told = of_curve(declared, len(checkpoints)) if curve else declared
    for name in checkpoints:
        require_declared(Path(name), bundle, told)
    scored = [_scored(name, bundle, output, style, scoring) for name in checkpoints]
    if curve:
        return [record_curve(scored, bundle, records, declared)]
    return [make_record(one, bundle, records, declared, style=style) for one in scored]


def _scored(
    name: str, bundle: Bundle, output: Path, style: str, scoring: Mapping[str, Any]
) -> Path:
    told = files.sha256_json([name, bundle.sha256, style, scoring.get("descends")])
    folder = output / f"{slug(name)[:60]}-{told[:8]}"
    with suppress(UserError):
        found = read_results(folder, bundle, style)
        if found.weights_sha256 == checkpoint.weights_sha256(Path(name)):
            return folder
    return run_lm_eval(bundle, "hf", name, folder, tasks=(style,), **scoring)


def next_steps(leaderboard: Path, written: Sequence[Path]) -> list[str]:
    """Tells what is left to do, from the records in a checkout to a pull request."""
    branch = f"submit-{written[0].stem}"
    return [
        "These files can be merged. What is left, in your clone or fork:",
        f"  git switch --create {branch}",
        f"  git add {leaderboard}",
        '  git commit --message "Records of ..."',
        f"  git push --set-upstream origin {branch}",
        "and a pull request to main, whose text says how to make the result again.",
    ]
