"""Asks shards on Ray's workers, on one machine or many that share the output directory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting.engines.engine import Engine
from factual_forgetting.engines.opening import open_engine
from factual_forgetting.errors import InputError, PackageError, reason_of
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.classify import Labelling, begin
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
        return open_engine(*self._opening)

    def name(self) -> str:
        return self._engine.name

    def ask(self, labelling: Labelling, shard: Shard) -> None:
        labelling.ask(self._engine, [shard])


def _gpus_each(arguments: dict[str, Any], workers: int, there: int) -> int:
    """Returns the GPUs of a worker: those that its model is spread over; 0 where there are none."""
    split = ("tensor_parallel_size", "pipeline_parallel_size")
    each = prod(int(arguments.get(name) or 1) for name in split)
    if 0 < there < workers * each:
        raise InputError(
            f"{workers} workers of {each} GPUs need {workers * each}, and Ray has {there}. "
            "Lower --ray."
        )
    return each if there else 0


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
        workers: Number of workers; where there are GPUs, each takes those that its model needs.

    Raises:
        UserError: If Ray is not installed, workers keep dying, or as `classify` does.
    """
    try:
        import ray
    except ImportError:
        raise PackageError("Ray is not installed. Install factual-forgetting[ray].") from None
    started = None if ray.is_initialized() else ray.init(include_dashboard=False)
    gpus = _gpus_each(opening[2], workers, int(ray.cluster_resources().get("GPU", 0)))
    remote = ray.remote(num_gpus=gpus, runtime_env=_NO_BARS, **_RETRIES)(_Worker)
    pool = [remote.remote(opening) for _ in range(workers)]
    try:
        engine = ray.get(pool[0].name.remote())
        labelling = begin(facts, engine, settings, base, output.resolve())
        answered = ray.util.ActorPool(pool).map_unordered(
            lambda worker, shard: worker.ask.remote(labelling, shard), labelling.shards
        )
        for _ in tqdm(answered, total=len(labelling.shards), desc="classify", unit="shard"):
            pass
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        told = f"Ray's workers keep failing ({reason_of(error)}). Run again to resume."
        raise InputError(told) from None
    finally:
        if started:
            ray.shutdown()
    return labelling.merge()
