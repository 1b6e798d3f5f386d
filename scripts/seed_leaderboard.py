"""Makes the leaderboard's records of our own runs from a demonstration's or a sweep's output.

    python scripts/seed_leaderboard.py OUTPUT [--score] [--leaderboard leaderboard] [--version v1]

OUTPUT holds runs in `runs/`, their scores by lm-eval in `results/` under the same names where they
were scored (--score does that first), and their bundle in `bundle/` unless it is the embedded one.
Of a sweep the runs that it chose are recorded. A run that is recorded already is left as it is, so
the command can be given again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.board.bundles import make_official
from factual_forgetting.board.making import Declared, make_record
from factual_forgetting.bundle.manifest import MANIFEST, load_bundle, locate_bundle
from factual_forgetting.checkpoint import ALMANAC
from factual_forgetting.errors import UserError
from factual_forgetting.protocol.run import CHOSEN, RUN
from factual_forgetting.scoring.score import run_lm_eval

_OURS = Declared(submitter="factual-forgetting")


def seed(output: Path, leaderboard: Path, version: str, *, score: bool = False) -> list[Path]:
    """Records every finished run under a directory, and names their bundle official."""
    own = output / "bundle"
    bundle = load_bundle(own if (own / MANIFEST).is_file() else locate_bundle(ALMANAC))
    runs = _runs(output)
    if not runs:
        raise UserError(f"{output} holds no finished runs ({RUN}). Train some first.")
    records = []
    for run in tqdm(runs, desc="record", unit="run"):
        scored = output / "results" / run.relative_to(output / "runs")
        if score and not any(scored.rglob("results_*.json")):
            run_lm_eval(bundle, "hf", str(run), scored, batch_size="256", device="cpu")
        source = scored if any(scored.rglob("results_*.json")) else run
        records.append(make_record(source, bundle, leaderboard / "records", _OURS))
    make_official(bundle, leaderboard / "bundles", version)
    return records


def _runs(output: Path) -> list[Path]:
    if (output / CHOSEN).is_file():
        chosen = files.read_json(output / CHOSEN).values()
        return sorted(output / run for row in chosen for run in row["runs"])
    return sorted(path.parent for path in (output / "runs").rglob(RUN))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--score", action="store_true", help="what isn't scored yet")
    parser.add_argument("--leaderboard", type=Path, default=Path("leaderboard"))
    parser.add_argument("--version", default="v1", help="of the official bundle (v1)")
    args = parser.parse_args()
    try:
        records = seed(args.output, args.leaderboard, args.version, score=args.score)
    except UserError as error:
        sys.stderr.write(f"seed_leaderboard: {error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
