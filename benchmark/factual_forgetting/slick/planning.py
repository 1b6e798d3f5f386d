"""What a labelling will take, measured on a few questions before it starts."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from factual_forgetting.slick import prompts
from factual_forgetting.slick.answers import Engine, Group, Query
from factual_forgetting.slick.asking import rounds
from factual_forgetting.slick.classify import Job

_MEASURED = 256


def plan(job: Job, engine: Engine) -> dict[str, Any]:
    """Asks a few questions, and reckons the whole from them.

    Retirement and quotas may save queries; nobody knows how many before, so they count whole.
    Nothing that is measured here is kept.

    Returns:
        Shards and queries in all and left; of the measured queries, tokens computed each
        (where the engine counts them), queries a second; the seconds that the rest will take,
        and the memory in use at most, in bytes.
    """
    a_question = sum(len(planned.runs) for planned in rounds(job.settings))
    queries = sum(shard.questions for shard in job.shards) * a_question
    left = queries - sum(job.run(shard).answered for shard in job.shards)
    told: dict[str, Any] = {"shards": len(job.shards), "queries": queries, "queries_left": left}
    if left:
        told |= _measure(job, engine)
        told["seconds_left"] = left / told["queries_a_second"]
    return {**told, "memory": _peak_memory()}


def _measure(job: Job, engine: Engine) -> dict[str, Any]:
    shard = max(job.shards, key=lambda shard: shard.questions)
    queries = [
        Query(prompts.question_prompt(fact.question), fact.accepted)
        for fact in shard.facts(job.parts)[:_MEASURED]
    ]
    heads = [prompts.exemplar_prefix(e) for e in job.drawn[shard.relation].labelling[:2]]
    groups = [Group(head, queries) for head in heads]
    most = job.settings.max_new_tokens
    engine.answer(groups[:1], most, verdict_only=True)  # caches are filled once, not each time
    before, started = getattr(engine, "computed", None), time.perf_counter()
    engine.answer(groups, most, verdict_only=True)
    seconds, asked = time.perf_counter() - started, len(queries) * len(groups)
    told: dict[str, Any] = {"measured": asked, "queries_a_second": asked / seconds}
    if before is not None:
        told["tokens_a_query"] = (getattr(engine, "computed", before) - before) / asked
    return told


def _peak_memory() -> int:
    """Bytes: of the GPU where one is in use, else of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
