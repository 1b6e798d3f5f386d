"""What a labelling will take, measured on a few questions before it starts."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

from factual_forgetting.engines.engine import Engine
from factual_forgetting.slick.classify import Labelling

_MEASURED = 256


def estimate_labelling(labelling: Labelling, engine: Engine) -> dict[str, Any]:
    """Asks a few questions, and reckons the whole from them.

    Retirement and quotas may save queries; nobody knows how many before, so they count whole.
    Nothing that is measured here is kept.

    Returns:
        Shards and queries in all and left; of the measured queries, queries a second and tokens
        computed each (where the engine counts them); the seconds and tokens that the rest will
        take, and the memory in use at most, in bytes.
    """
    shards = labelling.shards
    queries = labelling.queries(shards)
    left = queries - sum(labelling.run(shard).answered for shard in shards)
    told = {"shards": len(shards), "queries": queries, "queries_left": left}
    measured = _measure(labelling, engine, left) if left else {}
    return {**told, **measured, "memory": peak_memory()}


def _measure(labelling: Labelling, engine: Engine, left: int) -> dict[str, Any]:
    shard = max(labelling.shards, key=lambda shard: shard.questions)
    groups = labelling.run(shard).first_groups(_MEASURED)
    most = labelling.settings.max_new_tokens
    engine.answer(groups[:1], most, verdict_only=True)  # caches are filled once, not each time
    before, started = getattr(engine, "computed", None), time.perf_counter()
    engine.answer(groups, most, verdict_only=True)
    seconds, asked = time.perf_counter() - started, sum(len(group.queries) for group in groups)
    told: dict[str, Any] = {"measured": asked, "queries_a_second": asked / seconds}
    told["seconds_left"] = left * seconds / asked
    if before is not None:
        tokens = getattr(engine, "computed", before) - before
        told |= {"tokens_a_query": tokens / asked, "tokens_left": round(left * tokens / asked)}
    return told


def peak_memory() -> int:
    """Returns the most bytes used so far: of the GPU where one is in use, else of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")  # ru_maxrss counts the parent's peak too
    told = status.read_text() if status.exists() else ""
    if found := re.search(r"VmHWM:\s*(\d+) kB", told):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
