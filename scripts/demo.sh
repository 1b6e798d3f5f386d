#!/usr/bin/env bash
# The whole path on the embedded world, from a fresh clone: installs, then runs the demo.
# Arguments go to `factual-forgetting demo`, for example --quick.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
exec .venv/bin/factual-forgetting demo "$@"
