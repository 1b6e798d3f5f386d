from pathlib import Path
from typing import Any

import pytest
from synthetic import answered_record, drawn, make_bundle, write_run

from factual_forgetting.board.board import Entry, make_board
from factual_forgetting.board.bundles import reference_of
from factual_forgetting.board.record import load_records
from factual_forgetting.board.validate import CHECKS
from factual_forgetting.bundle.manifest import Bundle

ARMS = {
    "sft": ("sft", {}, 0.3, 0.05),
    "known_only": ("known_only", {}, 0.004, 0.004),
    "attention": ("freeze", {"trainable": ["attention"]}, 0.1, 0.02),
    "distil": ("self_distillation", {"tau": 1.0}, 0.3, 0.01),
}


@pytest.fixture(autouse=True)
def short_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn runs are shorter than the recipe that they name; published ones aren't."""
    if "published" not in request.fixturenames:
        monkeypatch.delitem(CHECKS, "steps")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of 60 facts, made without a model."""
    return make_bundle(tmp_path_factory.mktemp("world") / "bundle")


@pytest.fixture(scope="session")
def runs(world: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four methods times three seeds."""
    root = tmp_path_factory.mktemp("drawn")
    made = []
    for index, (name, (method, settings, learn, forget)) in enumerate(ARMS.items()):
        for seed in range(3):
            curves = drawn(world, 100 * index + seed, learn, forget)
            made.append(write_run(root / f"{name}-{seed}", world, curves, method, seed, settings))
    return made


@pytest.fixture(scope="session")
def records(world: Bundle, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their records; only to be read."""
    root = tmp_path_factory.mktemp("leaderboard") / "records"
    for run in runs:
        answered_record(run, world, root)
    return root


@pytest.fixture(scope="session")
def entries(records: Path) -> list[Entry]:
    """The same, read."""
    return list(load_records(records))


@pytest.fixture(scope="session")
def board(entries: list[Entry], world: Bundle) -> dict[str, Any]:
    """Their board with the reference rows; only to be read."""
    return make_board(entries, {world.sha256: reference_of(world)})
