import multiprocessing
import random
import signal
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from synthetic import ME

from factual_forgetting.board.board import make_board
from factual_forgetting.board.making import make_record
from factual_forgetting.board.record import find_records, load_record
from factual_forgetting.board.validate import validate
from factual_forgetting.bundle.manifest import Bundle

PROCESSES = 32


def _record(runs: list[Path], bundle: Bundle, root: Path, worker: int) -> None:
    while True:
        for run in random.Random(worker).sample(runs, len(runs)):
            make_record(run, bundle, root, ME)
        if not _is_victim(worker):
            return


def _is_victim(worker: int) -> bool:
    """A victim records until it is killed, so that no fast machine lets it finish first."""
    return worker % 3 == 0


def _start(runs: list[Path], bundle: Bundle, root: Path) -> list[ForkProcess]:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_record, args=(runs, bundle, root, worker))
        for worker in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    return workers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_record_at_once_and_some_are_killed(
    world: Bundle, runs: list[Path], tmp_path: Path
) -> None:
    root = tmp_path / "records"
    workers = _start(runs, world, root)
    rng = random.Random(0)
    for index in filter(_is_victim, range(PROCESSES)):
        time.sleep(rng.random() / 20)
        workers[index].kill()
        for path in root.rglob("[0-9a-f]*.json"):
            load_record(path)  # Whatever is there is whole, outcomes included.
    for worker in workers:
        worker.join()
    ends = [-signal.SIGKILL if _is_victim(index) else 0 for index in range(PROCESSES)]
    assert [worker.exitcode for worker in workers] == ends

    found = validate(root, {world.sha256: world})
    # Runs that weren't scored have no answers.
    warned = {("files", "warning"), ("answered", "warning")}
    assert {(finding.check, finding.severity) for finding in found} <= warned
    assert len(find_records(root)) == len(runs)
    records = tmp_path / "sequential"
    for run in runs:
        make_record(run, world, records, ME)
    concurrent, sequential = (
        make_board(load_record(path) for path in find_records(place)) for place in (root, records)
    )
    assert concurrent == sequential
