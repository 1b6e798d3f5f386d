"""Questions on disk in shards, and the journal of each: nothing that is answered is lost.

A shard holds questions of one relation. Shards come in blocks; a block is a random sample of
all questions, so that the first blocks are a fair picture of the whole. Facts are streamed:
memory hardly grows with their number.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from factual_forgetting import files
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact, stable_fraction

_QUESTIONS, _INDEX = "questions.jsonl", "shards.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """Questions of one relation and one block: lines of the file of all questions.

    Attributes:
        number: Place among all shards, block by block.
        start: First byte in the file.
        questions: Number of questions.
    """

    number: int
    block: int
    relation: str
    start: int
    questions: int

    def facts(self, parts: Path) -> list[Fact]:
        """Reads the questions."""
        with (parts / _QUESTIONS).open("rb") as stream:
            stream.seek(self.start)
            return [Fact.from_row(files.loads(row)) for row in islice(stream, self.questions)]

    def journal(self, parts: Path) -> Path:
        """Returns where the shard's answers are kept."""
        return parts / f"{self.number:06d}.jsonl"


def lot_of(fact: Fact, seed: int) -> float:
    """Returns a fact's place in the random order that a seed fixes, in [0, 1)."""
    return stable_fraction("order", seed, fact.id)


class Spool:
    """Facts on disk as they came, with the order in which they will be asked, and their hash."""

    def __init__(self, stream: IO[bytes], seed: int) -> None:
        """Begins with an empty file, which is written and read, and the seed of the order."""
        self.digest = hashlib.sha256()
        self._stream, self._seed = stream, seed
        self._offsets, self._places, self._relations = array("q"), array("d"), array("q")
        self._names: dict[str, int] = {}

    def fill(self, facts: Iterable[Fact]) -> Iterator[Fact]:
        """Writes facts, and passes each on."""
        for fact in facts:
            line = (files.dumps(fact.row()) + "\n").encode()
            self._offsets.append(self._stream.tell())
            self._places.append(lot_of(fact, self._seed))
            self._relations.append(self._names.setdefault(fact.relation, len(self._names)))
            self.digest.update(line)
            self._stream.write(line)
            yield fact

    def counts(self) -> dict[str, int]:
        """Returns the number of facts by relation."""
        counts = Counter(self._relations)
        return {name: counts[number] for name, number in self._names.items()}

    def shards(
        self, asked: Callable[[dict[str, Any]], bool], size: int, parts: Path
    ) -> list[Shard]:
        """Writes the questions and the index of their shards.

        Args:
            asked: Tells by a fact's row whether it is asked.
            size: Questions of the largest relation in one block, about.
            parts: Directory to write.

        Raises:
            UserError: If nothing is left to ask.
        """
        shards: list[Shard] = []
        with files.atomic(parts / _QUESTIONS) as stream:
            for (block, relation), lines in groupby(self._ordered(size), itemgetter(0, 1)):
                start = stream.tell()
                chosen = [line for *_, line in lines if asked(files.loads(line))]
                stream.writelines(chosen)
                if chosen:
                    shards.append(Shard(len(shards), block, relation, start, len(chosen)))
        if not shards:
            raise InputError("No question is left beside the exemplars. Give more facts.")
        files.write_json(parts / _INDEX, [asdict(shard) for shard in shards])
        return shards

    def _ordered(self, size: int) -> Iterator[tuple[int, str, bytes]]:
        """Yields block, relation and line of every fact, by block, relation and place."""
        import numpy as np

        relations, places = np.asarray(self._relations), np.asarray(self._places)
        blocks = -(-max(Counter(self._relations).values(), default=0) // size)
        block_of = (places * blocks).astype(np.int64)
        names = list(self._names)
        for index in np.lexsort((places, relations, block_of)):
            self._stream.seek(self._offsets[index])
            yield int(block_of[index]), names[relations[index]], self._stream.readline()


def read_shards(parts: Path) -> list[Shard]:
    """Reads the index of a prepared labelling; none if there is no index yet."""
    path = parts / _INDEX
    return [Shard(**row) for row in files.read_json(path)] if path.exists() else []


def append(path: Path, row: Any) -> None:
    """Adds a line to a journal, synced."""
    with path.open("ab") as stream:
        stream.write((files.dumps(row) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_journal(path: Path) -> list[Any]:
    """Reads a journal; a last line that was cut off by a kill is dropped from the file."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return [files.loads(line) for line in content[:whole].splitlines()]
