from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import factual_forgetting
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.errors import UserError
from factual_forgetting.slick import on_ray
from factual_forgetting.slick.classify import Labelling, begin, classify
from factual_forgetting.slick.labelling import SlickConfig
from factual_forgetting.slick.shards import Shard
from stub import BASE, StubEngine, contents, many_facts
from tiny import WORLD, checkpoint_of

ray = pytest.importorskip("ray")
SETTINGS = SlickConfig(runs=4, shard_size=50)
MIDDLE = 1  # a shard has three rounds: 0, 1 and 2


@pytest.fixture(scope="module", autouse=True)
def _workers() -> Iterator[None]:
    """One Ray for all tests, whose workers find the package and the tests."""
    here = Path(__file__).parent
    paths = [Path(factual_forgetting.__file__).parents[1], here, here.parent]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


class Noting(on_ray._Worker):
    """Holds a stub, and notes in a file each round that it is asked; may die once."""

    def __init__(self, opening: tuple[Any, ...]) -> None:
        *_, notes, deadly = opening
        died = notes.with_name("died")

        def note(_: int) -> None:
            rounds = len(self.journal.read_bytes().splitlines())
            if (self.shard, rounds) == (deadly, MIDDLE) and not died.exists():
                died.touch()
                os._exit(1)
            with notes.open("a") as stream:
                stream.write(f"{self.shard} {rounds}\n")

        self._engine = StubEngine(note)

    def ask(self, labelling: Labelling, shard: Shard) -> None:
        self.shard, self.journal = shard.number, shard.journal(labelling.parts)
        self.journal.touch()
        super().ask(labelling, shard)


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, bytes]:
    """What one process without Ray writes."""
    classify(many_facts(), StubEngine(), SETTINGS, BASE, tmp_path / "alone")
    return contents(tmp_path / "alone")


def label_noting(output: Path, workers: int, deadly: int | None = None) -> Counter[str]:
    """Labels on Ray, and returns how often each round of each shard was asked."""
    asked = output.with_name("asked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "_Worker", Noting)
        opening = ("auto", "hf", {}, asked, deadly)
        on_ray.classify_on_ray(many_facts(), opening, SETTINGS, BASE, output, workers)
    assert asked.with_name("died").exists() == (deadly is not None)
    return Counter(asked.read_text().splitlines())


@pytest.mark.slow
def test_two_workers_and_one_give_the_same_labels_with_a_real_engine(tmp_path: Path) -> None:
    opening = ("prefix", "hf", {"pretrained": str(checkpoint_of())}, "auto", "cpu")
    settings = SETTINGS.model_copy(update={"shard_size": 20})
    classify(WORLD, open_engine(*opening), settings, BASE, tmp_path / "one")
    on_ray.classify_on_ray(WORLD, opening, settings, BASE, tmp_path / "two", 2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_workers_take_the_gpus_that_their_model_is_spread_over() -> None:
    assert on_ray._gpus_each({}, 3, 0) == 0
    assert on_ray._gpus_each({}, 3, 4) == 1
    assert on_ray._gpus_each({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 1, 8) == 8
    with pytest.raises(UserError, match=r"3 workers of 2 GPUs need 6, and Ray has 4\. Lower --ray"):
        on_ray._gpus_each({"tensor_parallel_size": 2}, 3, 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_asks_every_round_once(
    tmp_path: Path, alone: dict[str, bytes], workers: int
) -> None:
    asked = label_noting(tmp_path / "ray", workers)
    assert set(asked.values()) == {1}
    assert contents(tmp_path / "ray") == alone


def test_a_worker_that_dies_costs_only_what_its_shard_has_not_finished(
    tmp_path: Path, alone: dict[str, bytes]
) -> None:
    asked = label_noting(tmp_path / "ray", 2, deadly=3)
    assert set(asked.values()) == {1}
    assert f"3 {MIDDLE}" in asked
    assert contents(tmp_path / "ray") == alone


def test_work_done_without_ray_is_not_done_again(tmp_path: Path, alone: dict[str, bytes]) -> None:
    labelling = begin(many_facts(), "stub", SETTINGS, BASE, tmp_path / "ray")
    labelling.ask(StubEngine(), labelling.shards[:3])
    asked = label_noting(tmp_path / "ray", 2)
    assert {line.split()[0] for line in asked} == {str(s.number) for s in labelling.shards[3:]}
    assert contents(tmp_path / "ray") == alone


def test_an_error_of_a_worker_reaches_the_user_as_it_is(tmp_path: Path) -> None:
    opening = ("prefix", "dummy", {}, "auto", "cpu")
    with pytest.raises(UserError, match="--model dummy is not hf"):
        on_ray.classify_on_ray(WORLD, opening, SETTINGS, BASE, tmp_path / "bad", 1)
    assert ray.is_initialized()
