"""Asks shards on Ray's workers, on one machine or many that share the output directory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
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
        raise PackageError("Ray is not installed. Install factual-forgetting[ray].") from None
    started = None if ray.is_initialized() else ray.init(include_dashboard=False)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
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
