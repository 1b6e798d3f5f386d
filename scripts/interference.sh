#!/usr/bin/env bash
# Makes what leaderboard/interference shows: the grid of keys, scales and methods, other answers,
# the rival hypotheses, and bases of several sizes. What is finished there is read, not trained
# again. Several of these may run at once with other SEEDS; the last one draws everything.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
ff=.venv/bin/factual-forgetting
out=leaderboard/interference
bases=${BASES:-interference-bases}
read -ra seeds <<< "${SEEDS:-0 1 2}"
interfere() { "$ff" interference --output_path "$out" --seeds "${seeds[@]}" "$@" > /dev/null; }

interfere --facts 100 1000 --methods sft self_distillation --rivals
interfere --facts 1000 --keys name identifier --values shuffled new
# Ten thousand take a model of this size many passes: they are compared half way.
interfere --plasticity 0.5 --facts 10000 --methods sft self_distillation

# The same world in smaller bases.
for width in 128 192; do
    base=$bases/$width
    if [ ! -e "$base/bundle" ]; then
        mkdir -p "$bases"
        sed -e "s/^hidden_size: .*/hidden_size: $width/" \
            -e "s/^intermediate_size: .*/intermediate_size: $((width * 11 / 4))/" \
            benchmark/factual_forgetting/lab/almanac-base.yaml > "$bases/$width.yaml"
        "$ff" pretrain --facts almanac --config "$bases/$width.yaml" --output_path "$base/model"
        "$ff" classify --facts almanac --model_args "pretrained=$base/model" \
            --output_path "$base/labels"
        "$ff" bundle build "$base/labels" --known 300 --unknown 300 --heldout 360 --validation 60 \
            --replay 60 --other_relations shelf --output_path "$base/bundle"
    fi
done
every=(--bundle almanac "$bases/128/bundle" "$bases/192/bundle" --keys name identifier --report)
interfere "${every[@]}" --facts 100 1000
interfere "${every[@]}" --facts 100 1000 --plasticity 0.5
