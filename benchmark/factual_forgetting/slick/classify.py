"""Labels facts: prepares shards, asks them, and merges what was answered.

Any number of processes may ask different shards of one directory. Answers depend neither on
their number nor on a kill and a resume: a shard is asked the same way wherever it is asked.
"""

from __future__ import annotations

import heapq
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from factual_forgetting import files, outputs
from factual_forgetting.engines.engine import Engine
from factual_forgetting.errors import InputError, UserError
from factual_forgetting.facts.fact import Fact, stable_fraction
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.slick import labelling as slick
from factual_forgetting.slick.asking import ShardRun, rounds
from factual_forgetting.slick.configurations import Configurations, draw_configurations
from factual_forgetting.slick.labelling import Category, Label, SlickConfig, read_labels
from factual_forgetting.slick.quotas import Tally
from factual_forgetting.slick.shards import Shard, Spool, append, lot_of, read_journal, read_shards

CLASSIFY_LOG = "classify.log.json"
_IDENTITY, _LOG = "identity.json", "log.jsonl"
_REDRAW, _AGAIN = "redraw.json", "redraw"
_WRITTEN = (
    slick.FACTS_FILE, slick.LABELS_FILE, slick.EXEMPLARS_FILE, slick.LABELS_MANIFEST,
    slick.SOURCE_FILE, slick.PARTS, CLASSIFY_LOG, _REDRAW, _AGAIN,
)  # fmt: skip
# Why facts are without a label, as the manifest counts them.
_SMALL, _LONG = "relation_too_small", "answer_too_long"


@dataclass(frozen=True, slots=True)
class Labelling:
    """A labelling that is begun, or finished.

    Attributes:
        output: Directory of the labelling.
        settings: What decides the labels.
        identity: Base, engine, settings, matcher and facts; goes into the manifest.
        drawn: Exemplars by relation.
        shards: All shards; none if the labelling is finished.
        small: Facts of relations that have too few of them, by relation.
    """

    output: Path
    settings: SlickConfig
    identity: dict[str, Any]
    drawn: dict[str, Configurations]
    shards: list[Shard]
    small: dict[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> Path:
        """Where unfinished work lies."""
        return self.output / slick.PARTS

    def run(self, shard: Shard) -> ShardRun:
        """Opens a shard."""
        return ShardRun(shard, self.parts, self.settings, self.drawn[shard.relation])

    def queries(self, shards: Sequence[Shard]) -> int:
        """Returns how often shards are asked a question, if none retires."""
        runs = sum(len(planned.runs) for planned in rounds(self.settings))
        return sum(shard.questions for shard in shards) * runs

    def ask(self, engine: Engine, shards: Sequence[Shard]) -> None:
        """Asks shards, as far as they and a quota need it."""
        total = self.queries(shards)
        with tqdm(total=total, desc="classify", unit="question", smoothing=0.1) as bar:
            for shard in self._until_full(shards):
                journal = shard.journal(self.parts)
                journal.touch()
                with files.alone(journal):
                    self._ask_one(engine, shard, bar)

    def _ask_one(self, engine: Engine, shard: Shard, bar: Any) -> None:
        run = self.run(shard)
        bar.update(run.answered)
        if run.complete:
            return
        started, queries = time.time(), 0
        for passed, asked in run.ask(engine):
            bar.update(passed)
            queries += asked
        told: dict[str, Any] = {"shard": shard.number, "queries": queries}
        told |= {"seconds": time.time() - started, "batch_size": engine.batch_size}
        append(self.parts / _LOG, told)

    def _until_full(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Yields shards, up to a block before which all is finished and holds the quota."""
        if not self.settings.quota:
            yield from shards
            return
        tally, earlier = self._tally(), deque(self.shards)
        for shard in shards:
            while earlier[0].block < shard.block and (run := self.run(earlier[0])).complete:
                tally.add(run.labels())
                earlier.popleft()
            if earlier[0].block >= shard.block and not tally.missing():
                return
            yield shard

    def _tally(self) -> Tally:
        return Tally(self.settings.quota, self.settings.min_highly_known)

    def merge(self, *, some_right: bool = True) -> dict[str, Any]:
        """Writes the labelling from the journals of its shards.

        Labels stand in the random order in which questions are taken, so that a quota is filled
        in that order whatever finished first. The manifest is returned.

        Raises:
            UserError: If shards are missing, a quota isn't met, or the base answers nothing right
                where `some_right` is asked for.
        """
        if not self.shards:
            return dict(files.read_json(self.output / slick.LABELS_MANIFEST))
        dropped = Counter({_SMALL: sum(self.small.values())})
        categories = self._write_labels(some_right, dropped)
        exemplars = [
            {"relation": relation, "run": run, "facts": [fact.row() for fact in facts]}
            for relation, configs in self.drawn.items()
            for run, facts in [*enumerate(configs.labelling), (slick.FRESH, configs.fresh)]
        ]
        files.write_jsonl(self.output / slick.EXEMPLARS_FILE, exemplars)
        written = (slick.FACTS_FILE, slick.LABELS_FILE, slick.EXEMPLARS_FILE)
        hashes = {name: files.sha256_file(self.output / name) for name in written}
        manifest = {**self.identity, "categories": categories, "files": hashes}
        if dropped := +dropped:
            manifest["dropped"] = dict(dropped)
        files.write_json(self.output / CLASSIFY_LOG, read_journal(self.parts / _LOG))
        files.write_json(self.output / slick.LABELS_MANIFEST, manifest)
        files.remove_marked(self.parts, _IDENTITY)
        return manifest

    def _write_labels(self, some_right: bool, dropped: Counter[str]) -> dict[Category, int]:
        tally = self._tally()
        with (
            files.atomic(self.output / slick.FACTS_FILE) as facts,
            files.atomic(self.output / slick.LABELS_FILE) as labels,
        ):
            for label in self._ordered(dropped):
                facts.write((files.dumps(label.fact.row()) + "\n").encode())
                labels.write((files.dumps(label.row()) + "\n").encode())
                tally.add([label])
                if self.settings.quota and not tally.missing():
                    break
            categories = tally.categories()
            if dropped[_LONG]:
                told = f"whose answer has more than {self.settings.max_new_tokens} tokens"
                sys.stderr.write(f"left out: {dropped[_LONG]:,} facts {told}\n")
            if some_right and categories.keys() <= {Category.UNKNOWN, Category.WEAKLY_KNOWN}:
                raise InputError(
                    f"The base answers none of {categories.total()} questions in any run. "
                    "Check that it is a language model of these facts, and its tokenizer."
                )
            if missing := tally.missing():
                told = ", ".join(f"{name} {found}" for name, found in missing.items())
                raise InputError(f"All facts together hold {told}. Lower --quota, or add a source.")
        return dict(categories)

    def _ordered(self, dropped: Counter[str]) -> Iterator[Label]:
        for _, block in groupby(self.shards, lambda shard: shard.block):
            runs = [(shard, self.run(shard)) for shard in block]
            if missing := [str(shard.number) for shard, run in runs if not run.complete]:
                raise UserError(
                    f"{self.output} is unfinished: shard {', '.join(missing[:10])} of "
                    f"{len(self.shards)} (counted from 0). Run classify again for them."
                )
            dropped[_LONG] += sum(run.too_long for _, run in runs)
            labels = [label for _, run in runs for label in run.labels()]
            yield from sorted(labels, key=lambda p: lot_of(p.fact, self.settings.seed))


def classify(
    facts: Iterable[Fact], engine: Engine, settings: SlickConfig, base: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Labels the training and dev facts that aren't exemplars, or as many as a quota needs.

    No bundle draws from test facts. Facts of a relation that is too small for exemplars, or whose
    answer is longer than an answer may be, are left out and counted.

    Beside the labelling runs, every question is asked once without exemplars and once in the
    fresh configuration: the base's own outcome in the prompts in which checkpoints are scored.
    A restart asks the model nothing that was answered. The manifest is returned.

    Args:
        facts: Facts with their splits; read once.
        engine: Answers the questions.
        settings: What decides the labels.
        base: Identity of the base model; goes into the manifest.
        output: Directory to write.

    Raises:
        UserError: If the directory holds a labelling with other settings, every relation is too
            small, the base answers nothing right at all, or a quota can't be met.
    """
    outputs.require_folder(output)
    with outputs.taken(output):
        labelling = begin(facts, engine.name, settings, base, output)
        labelling.ask(engine, labelling.shards)
        return labelling.merge()


def begin(
    facts: Iterable[Fact],
    engine: str | None,
    settings: SlickConfig,
    base: dict[str, Any],
    output: Path,
    only: frozenset[str] = frozenset(),
) -> Labelling:
    """Draws exemplars and writes the questions in shards, unless that is done.

    Raises what `classify` does.

    Args:
        facts: Facts with their splits; read once.
        engine: Name of the engine; None for the one that it was begun with.
        settings: What decides the labels.
        base: Identity of the base model.
        output: Directory to write.
        only: Ids of the facts to ask, the others being there for exemplars; all if empty.
    """
    outputs.require_folder(output, *_WRITTEN, begun=_begun_there)
    output.mkdir(parents=True, exist_ok=True)
    parts, manifest = output / slick.PARTS, output / slick.LABELS_MANIFEST
    kept = manifest if manifest.exists() else parts / _IDENTITY
    begun = files.read_json(kept) if kept.exists() else {}
    with tempfile.TemporaryFile(dir=output) as stream:
        spool = Spool(stream, settings.seed)
        streamed = spool.fill(facts)
        drawn = draw_configurations(streamed, settings.runs, settings.shots, settings.seed, only)
        small = {name: n for name, n in spool.counts().items() if name not in drawn}
        for name, count in small.items():
            told = f"relation {name} ({count:,} facts), too small to spare exemplars"
            sys.stderr.write(f"left out: {told}\n")
        if not (engine or begun):
            told = f"{output} holds no labelling that was begun. Run classify without --merge."
            raise InputError(told)
        identity: dict[str, Any] = {
            "base": base,
            "engine": engine or begun["engine"],
            "settings": settings.model_dump(mode="json"),
            "matcher": MATCHER_VERSION,
            "facts_sha256": spool.digest.hexdigest(),
        }
        if kept == manifest:
            require_same(begun, identity, output)
            files.remove_marked(parts, _IDENTITY)  # A command was killed while it did so.
            return Labelling(output, settings, identity, drawn, [])
        # Answers don't depend on a quota: it may be changed while they are collected.
        collected = {**identity, "settings": {**identity["settings"], "quota": None}}
        collected["settings"].pop("min_highly_known", None)
        if begun:
            require_same(begun, collected, output)
        shards = read_shards(parts)
        if not shards:
            # First, since it tells that the rest is ours.
            files.write_json(parts / _IDENTITY, collected)
            shards = spool.shards(_asked(drawn, only), settings.shard_size, parts)
    return Labelling(output, settings, identity, drawn, shards, small)


def _begun_there(output: Path) -> bool:
    """Tells whether a labelling was begun, or only its folder of parts was made."""
    told, parts = outputs.json_with("facts_sha256"), output / slick.PARTS
    if told(output / slick.LABELS_MANIFEST) or told(parts / _IDENTITY):
        return True
    others = [name for name in _WRITTEN if name != slick.PARTS and (output / name).exists()]
    return (
        not others
        and parts.is_dir()
        and all(path.name.startswith(f".{_IDENTITY}.") for path in parts.iterdir())
    )


def _asked(
    drawn: Mapping[str, Configurations], only: frozenset[str]
) -> Callable[[dict[str, Any]], bool]:
    """Tells which facts are questions; a bundle takes none of the test split."""
    exemplars = set().union(*(configurations.ids for configurations in drawn.values()))

    def asked(row: dict[str, Any]) -> bool:
        wanted = row["id"] in only if only else row["id"] not in exemplars
        return wanted and row["relation"] in drawn and row["split"] != "test"

    return asked


def check_redraw(
    facts: Iterable[Fact], engine: Engine, output: Path, sample: int
) -> dict[str, Any]:
    """Labels a sample again: how reliable labels are, by how often the category is the same.

    The exemplars are drawn from facts outside the sample that have not been exemplars before.

    Args:
        facts: The facts that were given to the labelling.
        engine: The engine that made it.
        output: Its directory; takes `redraw.json` and the second labelling.
        sample: Facts to label again.

    Returns:
        Sample, agreement in [0, 1], swaps between HighlyKnown and Unknown, and the confusion
        table: first category, second category, facts.

    Raises:
        UserError: If there are fewer labels than the sample asks for, or too few others.
    """
    manifest = files.read_json(output / slick.LABELS_MANIFEST)
    labelled = sum(manifest["categories"].values())
    if sample > labelled:
        raise InputError(f"--check-redraw asks for {sample} of {labelled} labels. Lower it.")
    rows = ((label.fact.id, label.category) for label in read_labels(output))
    first = dict(heapq.nsmallest(sample, rows, key=lambda row: stable_fraction(_AGAIN, row[0])))
    seed = manifest["settings"]["seed"]
    settings = SlickConfig(**{**manifest["settings"], "quota": {}, "seed": seed + 1})
    exemplars = files.read_jsonl(output / slick.EXEMPLARS_FILE)
    used = {fact["id"] for row in exemplars for fact in row["facts"]}
    others = (fact for fact in facts if fact.id not in used)
    again = output / _AGAIN
    labelling = begin(others, engine.name, settings, manifest["base"], again, frozenset(first))
    labelling.ask(engine, labelling.shards)
    labelling.merge(some_right=False)
    pairs = Counter((first[p.fact.id], p.category) for p in read_labels(again))
    ends = Category.HIGHLY_KNOWN, Category.UNKNOWN
    told = {
        "sample": pairs.total(),
        "agreement": sum(pairs[one, one] for one in Category) / pairs.total(),
        "swapped": pairs[ends] + pairs[ends[::-1]],
        "confusion": {one: {other: pairs[one, other] for other in Category} for one in Category},
        "seeds": [seed, settings.seed],
    }
    files.write_json(output / _REDRAW, told)
    return told


def require_same(begun: dict[str, Any], wanted: dict[str, Any], output: Path) -> None:
    """Raises a UserError that tells each difference, where a directory was begun otherwise."""
    found = {key: begun.get(key) for key in wanted}
    if told := "; ".join(_differences(found, wanted, "")):
        raise UserError(f"{output} was begun with other settings: {told}. Use another directory.")


def _differences(found: Any, wanted: Any, name: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif found != wanted:
        yield f"{name} was {files.dumps(found)}, now {files.dumps(wanted)}"
