#!/usr/bin/env bash
# Makes what leaderboard/interference shows: the grid of keys, scales and methods, other answers,
# the rival hypotheses, and a smaller base. What is finished there is read, not trained
# again. Several of these may run at once with other SEEDS; the last one draws everything.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
out=leaderboard/interference
read -ra seeds <<< "${SEEDS:-0 1 2}"
interfere() {
    .venv/bin/factual-forgetting interference --output_path "$out" --seeds "${seeds[@]}" "$@" \
        > /dev/null
}

interfere --facts 100 1000 --methods sft self_distillation --rivals
interfere --facts 1000 --keys name identifier --values shuffled new
# Ten thousand take a model of this size many passes: they are compared half way.
interfere --plasticity 0.5 --facts 10000 --methods sft self_distillation

# The same world in a smaller base; in fp32, which every CPU computes fast.
small=$out/bundles/128
[ -e "$small" ] || bash scripts/almanac_base.sh interference-bases/128 "$small" \
    hidden_size=128 intermediate_size=352 bf16=false
both=(--bundle almanac "$small" --keys name identifier --facts 100 1000 --report)
interfere "${both[@]}"
interfere "${both[@]}" --plasticity 0.5
