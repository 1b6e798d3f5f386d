#!/usr/bin/env bash
# Every method on the embedded world, three seeds: the table and plot of the protocol's README.
# Killed, it goes on where it was. Runs go to the directory given, or ./almanac-frontier.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
ff=.venv/bin/factual-forgetting
output=${1:-almanac-frontier}
"$ff" sweep run benchmark/factual_forgetting/protocol/almanac-frontier.yaml --output_path "$output"
"$ff" frontier "$output" --output_path leaderboard/almanac-frontier.png
