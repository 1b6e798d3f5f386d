"""Asks shards on Ray's workers, on one machine or many that share the output directory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting.engines.engine import Engine
from factual_forgetting.errors import UserError, reason_of
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.classify import Job, ask, merge, prepare
from factual_forgetting.slick.labelling import SlickConfig
from factual_forgetting.slick.shards import Shard

_RETRIES = {"max_restarts": 2, "max_task_retries": 2}
_NO_BARS = {"env_vars": {"TQDM_DISABLE": "1"}}


class _Worker:
    """Holds one engine and asks what it is given."""

    def __init__(self, opening: tuple[Any, ...]) -> None:
        self._opening = opening

    @cached_property
    def _engine(self) -> Engine:
        """Opened by the first call: what fails in a constructor, Ray tells as a death."""
        from factual_forgetting.engines.opening import open_engine

        return open_engine(*self._opening)

    def name(self) -> str:
        return self._engine.name

    def ask(self, job: Job, shard: Shard) -> None:
        ask(job, self._engine, [shard])


def classify_on_ray(
    facts: Iterable[Fact],
    opening: tuple[Any, ...],
    settings: SlickConfig,
    base: dict[str, Any],
    output: Path,
    workers: int,
) -> dict[str, Any]:
    """Does what `classify` does, on several workers; one that dies costs the round it was in.

    Args:
        facts: Facts with their splits; read once.
        opening: Arguments of `open_engine`.
        settings: What decides the labels.
        base: Identity of the base model.
        output: Directory to write, the same for all workers.
        workers: Number of workers; each takes a GPU where there are any.

    Raises:
        UserError: If Ray is not installed, workers keep dying, or as `classify` does.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed. Install factual-forgetting[ray].") from None
    started = None if ray.is_initialized() else ray.init(include_dashboard=False)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
    remote = ray.remote(num_gpus=gpus, runtime_env=_NO_BARS, **_RETRIES)(_Worker)
    pool = [remote.remote(opening) for _ in range(workers)]
    try:
        job = prepare(facts, ray.get(pool[0].name.remote()), settings, base, output.resolve())
        _ask_all(ray, pool, job)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        told = f"Ray's workers keep failing ({reason_of(error)}). Run again to resume."
        raise UserError(told) from None
    finally:
        if started:
            ray.shutdown()
    return merge(job)


def _ask_all(ray: Any, pool: list[Any], job: Job) -> None:
    """Gives every worker a shard, and the next one when it is done."""
    waiting = iter(job.shards)
    busy = {w.ask.remote(job, s): w for w, s in zip(pool, waiting, strict=False)}
    with tqdm(total=len(job.shards), desc="classify", unit="shard") as bar:
        while busy:
            (done,), _ = ray.wait(list(busy), num_returns=1)
            worker = busy.pop(done)
            ray.get(done)
            bar.update()
            following = next(waiting, None)
            if following is not None:
                busy[worker.ask.remote(job, following)] = worker
