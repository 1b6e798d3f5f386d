"""Labels facts: prepares shards, asks them, and merges what was answered.

Any number of processes may ask different shards of one directory. Answers depend neither on
their number nor on a kill and a resume: a shard is asked the same way wherever it is asked.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.engines.engine import Engine
from factual_forgetting.errors import UserError, reason_of
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.slick.asking import ShardRun, rounds
from factual_forgetting.slick.configurations import Configurations, draw
from factual_forgetting.slick.labelling import (
    EXEMPLARS,
    FACTS,
    FRESH,
    LABELS,
    MANIFEST,
    PARTS,
    QUOTAS,
    Label,
    SlickConfig,
)
from factual_forgetting.slick.shards import (
    INDEX,
    Shard,
    append,
    order,
    read_journal,
    read_shards,
    spooled,
)

_IDENTITY, _LOG = "identity.json", "log.jsonl"
LOG = "classify.log.json"


@dataclass(frozen=True, slots=True)
class Job:
    """A labelling that is prepared.

    Attributes:
        output: Directory of the labelling.
        settings: What decides the labels.
        identity: Base, engine, settings, matcher and facts; goes into the manifest.
        drawn: Exemplars by relation.
        shards: All shards; none if the labelling is finished.
    """

    output: Path
    settings: SlickConfig
    identity: dict[str, Any]
    drawn: dict[str, Configurations]
    shards: list[Shard]

    @property
    def parts(self) -> Path:
        """Where unfinished work lies."""
        return self.output / PARTS

    def run(self, shard: Shard) -> ShardRun:
        """Opens a shard."""
        return ShardRun(shard, self.parts, self.settings)


def classify(
    facts: Iterable[Fact],
    engine: Engine,
    settings: SlickConfig,
    base: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Labels every fact that isn't an exemplar, or as many as a quota needs.

    Beside the labelling runs, every question is asked once without exemplars and once in the
    fresh configuration: the base's own outcome in the prompts in which checkpoints are scored.
    A restart asks the model nothing that was answered.

    Args:
        facts: Facts with their splits; read once.
        engine: Answers the questions.
        settings: What decides the labels.
        base: Identity of the base model; goes into the manifest.
        output: Directory to write.

    Returns:
        The manifest.

    Raises:
        UserError: If the directory holds a labelling with other settings, a relation is too
            small, the base answers nothing right at all, or a quota can't be met.
    """
    job = prepare(facts, engine.name, settings, base, output)
    ask(job, engine, job.shards)
    return merge(job)


def prepare(
    facts: Iterable[Fact],
    engine: str | None,
    settings: SlickConfig,
    base: dict[str, Any],
    output: Path,
    only: frozenset[str] = frozenset(),
) -> Job:
    """Draws exemplars and writes the questions in shards, unless that is done.

    Args:
        facts: Facts with their splits; read once.
        engine: Name of the engine; None for the one that it was begun with.
        settings: What decides the labels.
        base: Identity of the base model.
        output: Directory to write.
        only: Ids of the facts to ask, the others being there for exemplars; all if empty.

    Raises:
        UserError: As `classify` does.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{reason_of(error)}. Give another --output_path.") from None
    parts = output / PARTS
    with spooled(output, settings.seed) as spool:
        stream = spool.fill(facts)
        drawn = draw(stream, settings.runs, settings.shots, settings.seed, only)
        identity = {
            "base": base,
            "engine": engine or _begun_with(output),
            "settings": settings.model_dump(mode="json"),
            "matcher": MATCHER_VERSION,
            "facts_sha256": spool.digest.hexdigest(),
        }
        if (output / MANIFEST).exists():
            manifest = files.read_json(output / MANIFEST)
            _require_same({key: manifest.get(key) for key in identity}, identity, output)
            return Job(output, settings, identity, drawn, [])
        # Answers don't depend on a quota: it may be changed while they are collected.
        begun = {**identity, "settings": {**identity["settings"], "quota": None}}
        if (parts / _IDENTITY).exists():
            _require_same(files.read_json(parts / _IDENTITY), begun, output)
        if not (parts / INDEX).exists():
            parts.mkdir(exist_ok=True)
            exemplars = set().union(*(configs.ids for configs in drawn.values()))
            spool.shards(
                lambda fact: fact in only if only else fact not in exemplars,
                settings.shard_size,
                parts,
            )
            files.write_json(parts / _IDENTITY, begun)
    return Job(output, settings, identity, drawn, read_shards(parts))


def _begun_with(output: Path) -> str:
    for path in (output / MANIFEST, output / PARTS / _IDENTITY):
        if path.exists():
            return str(files.read_json(path)["engine"])
    raise UserError(f"{output} holds no labelling that was begun. Run classify without --merge.")


def _require_same(found: dict[str, Any], wanted: dict[str, Any], output: Path) -> None:
    told = "; ".join(_differences(found, wanted, ""))
    if told:
        raise UserError(f"{output} was begun with other settings: {told}. Use another directory.")


def _differences(found: Any, wanted: Any, name: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif found != wanted:
        yield f"{name} was {files.dumps(found)}, now {files.dumps(wanted)}"


def ask(job: Job, engine: Engine, shards: Sequence[Shard]) -> None:
    """Asks shards, as far as they and a quota need it."""
    runs = sum(len(planned.runs) for planned in rounds(job.settings))
    total = sum(shard.questions for shard in shards) * runs
    quota = _QuotaWatch(job)
    with tqdm(total=total, desc="classify", unit="question", smoothing=0.1) as bar:
        for shard in shards:
            if quota.full_before(shard.block):
                break
            run = job.run(shard)
            bar.update(run.answered)
            if not run.complete:
                _ask_shard(job, engine, run, shard, bar)


def _ask_shard(job: Job, engine: Engine, run: ShardRun, shard: Shard, bar: Any) -> None:
    started, queries = time.time(), 0
    for passed, asked in run.ask(engine, job.drawn[shard.relation]):
        bar.update(passed)
        queries += asked
    told = {
        "shard": shard.number,
        "queries": queries,
        "seconds": time.time() - started,
        "batch_size": getattr(engine, "batch_size", None),
    }
    append(job.parts / _LOG, told)


class Tally:
    """Counts what a quota asks for."""

    def __init__(self, quota: dict[str, int]) -> None:
        self._quota = quota
        self._found: Counter[tuple[str, str]] = Counter()

    def add(self, label: Label) -> None:
        """Counts a label."""
        self._found[label.category, label.fact.split] += 1

    @property
    def missing(self) -> dict[str, str]:
        """What is not full yet: found and wanted, by name."""
        return {
            name: f"{self._found[QUOTAS[name]]:,} of {wanted:,}"
            for name, wanted in self._quota.items()
            if self._found[QUOTAS[name]] < wanted
        }

    @property
    def full(self) -> bool:
        """Whether there is a quota and nothing is missing."""
        return bool(self._quota) and not self.missing


class _QuotaWatch:
    """Tells when the finished blocks hold a quota; every shard is counted once."""

    def __init__(self, job: Job) -> None:
        self._job, self._tally, self._counted = job, Tally(job.settings.quota), 0

    def full_before(self, block: int) -> bool:
        """Tells whether the blocks before one are finished and hold the quota."""
        if not self._job.settings.quota:
            return False
        while self._job.shards[self._counted].block < block:
            run = self._job.run(self._job.shards[self._counted])
            if not run.complete:
                return False
            for label in run.labels():
                self._tally.add(label)
            self._counted += 1
        return self._tally.full


def merge(job: Job, *, some_right: bool = True) -> dict[str, Any]:
    """Writes the labelling from the journals of its shards.

    Labels stand in the random order in which questions are taken, so that a quota is filled
    in that order whatever finished first.

    Args:
        job: The labelling.
        some_right: Whether a base that answers nothing right is refused.

    Raises:
        UserError: If shards are missing, the base answers nothing right, or a quota isn't met.
    """
    if not job.shards:
        return dict(files.read_json(job.output / MANIFEST))
    tally, categories, right = Tally(job.settings.quota), Counter[str](), False
    with (
        files.atomic(job.output / FACTS) as facts,
        files.atomic(job.output / LABELS) as labels,
    ):
        for label in _ordered_labels(job):
            if tally.full:
                break
            facts.write((files.dumps(label.fact.row()) + "\n").encode())
            labels.write((files.dumps(label.row()) + "\n").encode())
            categories[label.category] += 1
            tally.add(label)
            right = right or "1" in label.correct
        if some_right and not right:
            raise UserError(
                f"The base answers none of {categories.total()} questions in any run. "
                "Check that it is a language model of these facts, and its tokenizer."
            )
        if tally.missing:
            told = ", ".join(f"{name} {count}" for name, count in tally.missing.items())
            raise UserError(f"All facts together hold {told}. Lower --quota, or add a source.")
    _write_exemplars(job)
    manifest = {
        **job.identity,
        "categories": dict(categories),
        "files": {
            name: files.sha256_file(job.output / name) for name in (FACTS, LABELS, EXEMPLARS)
        },
    }
    files.write_json(job.output / LOG, read_journal(job.parts / _LOG))
    files.write_json(job.output / MANIFEST, manifest)
    shutil.rmtree(job.parts)
    return manifest


def _ordered_labels(job: Job) -> Iterator[Label]:
    for _, block in groupby(job.shards, lambda shard: shard.block):
        runs = [(shard, job.run(shard)) for shard in block]
        missing = [str(shard.number) for shard, run in runs if not run.complete]
        if missing:
            raise UserError(
                f"{job.output} is unfinished: shard {', '.join(missing[:10])} of "
                f"{len(job.shards)} (counted from 0). Run classify again for them."
            )
        labels = [label for _, run in runs for label in run.labels()]
        yield from sorted(labels, key=lambda label: order(label.fact, job.settings.seed))


def _write_exemplars(job: Job) -> None:
    files.write_jsonl(
        job.output / EXEMPLARS,
        [
            {"relation": relation, "run": run, "facts": [fact.row() for fact in exemplars]}
            for relation, configs in job.drawn.items()
            for run, exemplars in [*enumerate(configs.labelling), (FRESH, configs.fresh)]
        ],
    )
