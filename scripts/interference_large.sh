#!/usr/bin/env bash
# Makes what leaderboard/interference-large shows: a base of 14 million parameters on a GPU, with
# FACTS new facts (as many as a million), and what is finished there read, not trained again.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
export TOKENIZERS_PARALLELISM=false
out=leaderboard/interference-large
read -ra facts <<< "${FACTS:-1000 10000}"
read -ra seeds <<< "${SEEDS:-0}"
[ -e "$out/bundle" ] || bash scripts/almanac_base.sh interference-bases/large "$out/bundle" \
    hidden_size=512 intermediate_size=1408 num_attention_heads=8 num_key_value_heads=8 \
    learning_rate=1.0e-3
.venv/bin/factual-forgetting interference --output_path "$out" --bundle "$out/bundle" \
    --protocol "$out/protocol.yaml" --plasticity 0.5 --most_passes 60 \
    --facts "${facts[@]}" --seeds "${seeds[@]}" --report
