#!/usr/bin/env bash
# Makes what leaderboard/interference shows: the grid of keys, scales and methods, other answers,
# the rival hypotheses, and bases of several sizes. What is finished there is read, not trained
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

# The same world in smaller bases; in fp32, which every CPU computes fast.
for width in 128 192; do
    [ -e "$out/bundles/$width" ] || bash scripts/almanac_base.sh "interference-bases/$width" \
        "$out/bundles/$width" hidden_size="$width" intermediate_size=$((width * 11 / 4)) bf16=false
done
every=(--bundle almanac "$out/bundles/128" "$out/bundles/192" --keys name identifier --report)
interfere "${every[@]}" --facts 100 1000
interfere "${every[@]}" --facts 100 1000 --plasticity 0.5
