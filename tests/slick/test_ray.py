from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import WORLD, checkpoint_of

import factual_forgetting
from factual_forgetting.slick.classify import LOG, ask, prepare
from factual_forgetting.slick.labelling import SlickConfig

pytest.importorskip("ray")
SETTINGS = SlickConfig(runs=4, shard_size=20)


@pytest.fixture(autouse=True)
def _workers_find_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(factual_forgetting.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{source}:{Path(__file__).parent}")


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name != LOG}


def label_all(output: Path, workers: int) -> dict[str, bytes]:
    from factual_forgetting.slick.on_ray import classify_on_ray

    opening = ("prefix", "hf", {"pretrained": str(checkpoint_of())}, "auto", "cpu")
    classify_on_ray(WORLD, opening, SETTINGS, {"pretrained": "tiny"}, output, workers)
    return contents(output)


@pytest.mark.slow
def test_two_workers_and_one_give_the_same_labels(tmp_path: Path) -> None:
    assert label_all(tmp_path / "two", 2) == label_all(tmp_path / "one", 1)


@pytest.mark.slow
def test_a_worker_that_dies_costs_only_its_unfinished_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factual_forgetting.slick import on_ray

    class Mortal(on_ray._Worker):
        """Dies once, in the middle of a shard."""

        def ask(self, job: on_ray.Job, shard: on_ray.Shard) -> int:
            import os

            died, answer = job.output / "parts" / "died", self._engine.answer

            def dying(*args: Any, **kwargs: Any) -> Any:
                if len(shard.journal(job.parts).read_bytes().splitlines()) == 1:
                    died.touch()
                    os._exit(1)
                return answer(*args, **kwargs)

            if shard.number == 2 and not died.exists():
                shard.journal(job.parts).touch()
                self._engine.answer = dying
            return super().ask(job, shard)

    whole = label_all(tmp_path / "whole", 1)
    monkeypatch.setattr(on_ray, "_Worker", Mortal)
    assert label_all(tmp_path / "died", 2) == whole


@pytest.mark.slow
def test_work_done_without_ray_is_not_done_again(tmp_path: Path) -> None:
    from factual_forgetting.slick.engines import open_engine

    opening = ("prefix", "hf", {"pretrained": str(checkpoint_of())}, "auto", "cpu")
    engine = open_engine(*opening)
    job = prepare(WORLD, engine.name, SETTINGS, {"pretrained": "tiny"}, tmp_path / "b")
    ask(job, engine, job.shards[:2])
    before = [shard.journal(job.parts).stat().st_mtime_ns for shard in job.shards[:2]]
    ask(job, engine, job.shards[:2])
    assert [shard.journal(job.parts).stat().st_mtime_ns for shard in job.shards[:2]] == before
    assert label_all(tmp_path / "a", 1) == label_all(tmp_path / "b", 1)
