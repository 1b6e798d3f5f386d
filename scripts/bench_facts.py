"""Times the facts room: reading and cleaning a source with its peak memory, and matching.

    python scripts/bench_facts.py PATH/TO/EntityQuestions/dataset

Reading and cleaning all of EntityQuestions is to stay under 20 CPU seconds and 0.2 GB on 2 cores.
"""

from __future__ import annotations

import argparse
import resource
import time

from factual_forgetting.facts import almanac
from factual_forgetting.facts.account import account
from factual_forgetting.facts.matching import AnswerKey, is_correct, normalise
from factual_forgetting.facts.sources import SourceOptions, clean_source

_MATCHES = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="almanac")
    source = parser.parse_args().source
    started = time.process_time()
    found = clean_source(SourceOptions(facts=source))
    cleaned = time.process_time()
    account(found)
    accounted = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{source}: {len(found.read):,} rows, {len(found.facts):,} facts kept")
    print(f"read, aliased and cleaned in {cleaned - started:.1f} CPU s")
    print(f"accounted for in {accounted - cleaned:.1f} CPU s")
    print(f"peak memory {peak:.2f} GB")
    time_matching()


def time_matching() -> None:
    """Matches generations as labelling does: a fact's answers against 20 runs each."""
    facts = almanac.world()
    texts = [
        (fact, f" {facts[(n * 7) % len(facts)].answers[0]}\nQ:") for n, fact in enumerate(facts)
    ]
    keys = {fact.id: AnswerKey(fact.accepted) for fact in facts}
    rounds = _MATCHES // len(texts)
    report("AnswerKey.accepts", rounds, texts, lambda fact, text: keys[fact.id].accepts(text))
    report("is_correct", rounds, texts, lambda fact, text: is_correct(text, fact.accepted))
    uncached = normalise.__wrapped__
    report("normalise, uncached", rounds, texts, lambda fact, text: uncached(text))


def report(name, rounds, texts, match) -> None:
    started = time.perf_counter()
    for _ in range(rounds):
        for fact, text in texts:
            match(fact, text)
    calls = rounds * len(texts)
    print(
        f"{name}: {(time.perf_counter() - started) / calls * 1e6:.2f} µs a call ({calls:,} calls)"
    )


if __name__ == "__main__":
    main()
