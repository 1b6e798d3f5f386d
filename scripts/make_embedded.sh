#!/usr/bin/env bash
# Remakes the embedded base and its bundle, from nothing, into benchmark/factual_forgetting/embedded.
# On another kind of processor the weights differ in their last bits.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
ff=.venv/bin/factual-forgetting
embedded=benchmark/factual_forgetting/embedded
work=$(mktemp -d)
rm -rf "$embedded"
"$ff" pretrain --facts almanac --output_path "$embedded/almanac-base"
"$ff" classify --facts almanac --model_args pretrained=almanac --output_path "$work/labels"
"$ff" bundle build "$work/labels" --known 300 --unknown 300 --heldout 500 --validation 60 \
    --replay 60 --other_relations shelf --output_path "$embedded/almanac-bundle"
rm -rf "$work"
