from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import factual_forgetting

SCRIPT = """
import sys
from itertools import count, islice
from pathlib import Path
from stub import StubEngine
from factual_forgetting.facts.fact import Fact
from factual_forgetting.slick.answers import Answer
from factual_forgetting.slick.classify import ask, merge, prepare
from factual_forgetting.slick.labelling import SlickConfig
from factual_forgetting.slick.planning import plan

class Quick(StubEngine):
    def answer(self, groups, max_new_tokens, *, verdict_only=False):
        return [[Answer("yes", 1.0)] * len(group.queries) for group in groups]

number, output = int(sys.argv[1]), Path(sys.argv[2])
facts = (
    Fact.make(f"P{i % 24}", f"Subject {i}", f"What is the value of subject {i}?", (f"Answer {i}",))
    for i in range(number - 1)
)
def with_one_right():
    yield Fact.make("P0", "Right", "What is right?", ("yes",))
    yield from facts
settings, engine = SlickConfig(runs=2), Quick()
job = prepare(with_one_right(), engine.name, settings, {}, output)
print(plan(job, engine)["queries"], file=sys.stderr)
ask(job, engine, job.shards)
merge(job)
# Not ru_maxrss, which a child inherits from its parent.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def peak_mebibytes(number: int, output: Path) -> float:
    package = Path(factual_forgetting.__file__).parents[1]
    path = f"{package}:{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(number), str(output)],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": path},
    )  # fmt: skip
    return float(done.stdout)


def test_memory_hardly_grows_with_the_number_of_questions(tmp_path: Path) -> None:
    few, many = peak_mebibytes(10_000, tmp_path / "a"), peak_mebibytes(40_000, tmp_path / "b")
    # 30,000 facts in memory would take about 30 MiB.
    assert many - few < 15


@pytest.mark.slow
def test_a_million_facts_are_labelled_in_less_than_1536_mebibytes(tmp_path: Path) -> None:
    assert peak_mebibytes(1_000_000, tmp_path) < 1536
