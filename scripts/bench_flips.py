"""How many labels flip in bf16: between engines, and between batch sizes of one engine.

    OMP_NUM_THREADS=1 python scripts/bench_flips.py [--facts 60] [--base DIR] [--device cuda]

Labels the same facts of the almanac, 20 configurations each, by lm-eval's hf class at several
batch sizes and by the prefix engine, in bf16 and (prefix) fp32. bf16 sums depend on the shapes
that are computed together, so no engine agrees with itself at another batch size. Labels flip
where a base is unsure, as a smaller one is (`scripts/almanac_base.sh`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

from tabulate import tabulate

from factual_forgetting import checkpoint
from factual_forgetting.engines.engine import Engine
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.engines.models import load_causal_lm, quiet
from factual_forgetting.engines.prefix import PrefixEngine
from factual_forgetting.facts.almanac import world
from factual_forgetting.slick.classify import classify
from factual_forgetting.slick.labelling import Label, SlickConfig, load_labels

RELATIONS = ("country", "place_of_birth", "author")


def engines(base: Path, device: str) -> dict[str, Engine]:
    named = {"pretrained": str(base), "dtype": "bfloat16"}
    sizes = {f"lm-eval, batch {n}": LMEvalEngine("hf", named, n, device) for n in ("64", "16", "5")}
    ours = {
        f"prefix, {dtype}": PrefixEngine(*load_causal_lm(base, dtype, device))
        for dtype in ("bfloat16", "float32")
    }
    return {**sizes, **ours}


def labels(engine: Engine, base: Path, facts: int, output: Path) -> list[Label]:
    asked = [
        fact
        for relation in RELATIONS
        for fact in islice((f for f in world() if f.relation == relation), facts)
    ]
    classify(asked, engine, SlickConfig(), checkpoint.identity(str(base)), output)
    return load_labels(output).labels


def flips(first: list[Label], second: list[Label]) -> list[str]:
    pairs = list(zip(first, second, strict=True))
    moved = sum(a.category != b.category for a, b in pairs)
    verdicts = [x != y for a, b in pairs for x, y in zip(a.correct, b.correct, strict=True)]
    return [
        f"{moved} ({moved / len(pairs):.2%})",
        f"{sum(verdicts)} ({sum(verdicts) / len(verdicts):.3%})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--facts", type=int, default=60, help="facts of each of three relations")
    parser.add_argument("--base", default=checkpoint.ALMANAC)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    quiet()
    base = checkpoint.locate(args.base)
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            name: labels(engine, base, args.facts, Path(scratch) / str(place))
            for place, (name, engine) in enumerate(engines(base, args.device).items())
        }
    names = list(found)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    rows = [[a, b, *flips(found[a], found[b])] for a, b in pairs]
    count = len(found[names[0]])
    kinds = Counter(label.category for label in found[names[0]])
    told = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
    print(f"{count} labels ({told}), {count * SlickConfig().runs:,} verdicts each\n")
    headers = ["", "against", "labels that flip", "verdicts that flip"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
