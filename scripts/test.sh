#!/usr/bin/env bash
# Lint, types and tests. `--all` adds the slow tier, and asks that the tests saw every message of
# an error. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
# One thread a process: two on shared cores are slower than one, and sums stay the same.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
tier=()
if [ "${1:-}" = "--all" ]; then
    shift
    tier=(-m "")
    RAISED=$(mktemp)
    export RAISED
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports --no-cache
.venv/bin/python -m pytest "${tier[@]}" "$@"
if [ -n "${RAISED:-}" ] && [ $# -eq 0 ]; then
    .venv/bin/python tests/raised.py "$RAISED"
fi
