import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from factual_forgetting.board.board import make_board
from factual_forgetting.board.record import find_records, load_record, make_record
from factual_forgetting.board.validate import validate
from factual_forgetting.bundle.manifest import Bundle

PROCESSES = 32


def _record_over_and_over(runs: list[Path], bundle: Bundle, root: Path, worker: int) -> None:
    for run in random.Random(worker).sample(runs, len(runs)):
        make_record(run, bundle, root)


def _start(runs: list[Path], bundle: Bundle, root: Path) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_record_over_and_over, args=(runs, bundle, root, worker))
        for worker in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    return workers  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_record_at_once_and_some_are_killed(
    world: Bundle, runs: list[Path], records: Path, tmp_path: Path
) -> None:
    root = tmp_path / "records"
    workers = _start(runs, world, root)
    rng = random.Random(0)
    killed = 0
    for worker in workers[::3]:
        time.sleep(rng.random() / 20)
        if worker.is_alive():
            os.kill(worker.pid or 0, signal.SIGKILL)
            killed += 1
        for path in root.rglob("[0-9a-f]*.json"):
            load_record(path)  # Whatever is there is whole, outcomes included.
    for worker in workers:
        worker.join()
    survivors = [worker for index, worker in enumerate(workers) if index % 3]
    assert [worker.exitcode for worker in survivors] == [0] * len(survivors)
    assert killed

    found = validate(root, {world.sha256: world})
    assert {(finding.check, finding.severity) for finding in found} <= {("files", "warning")}
    assert len(find_records(root)) == len(runs)
    concurrent, sequential = (
        make_board(load_record(path) for path in find_records(place)) for place in (root, records)
    )
    assert concurrent == sequential
