#!/usr/bin/env bash
# What a real base knows of the atlas, and a bundle of that. Each step resumes; a finished one is
# left as it is.
#     bash scripts/real_model.sh smollm2|gemma OUTPUT
# OUTPUT gets base/ labels/ bundle/. QUOTA counts what the bundle needs: HighlyKnown training facts
# for D_Known, validation and replay, with some to spare where relations fall short.
set -euo pipefail
mkdir -p "${2:?smollm2 or gemma, and OUTPUT}"
name=$1 out=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
quota=${QUOTA:-known=1300,unknown=1200,heldout=1100}
sizes=${SIZES:---known 1000 --unknown 1000 --heldout 1000 --validation 100 --replay 100}
# Currencies and atomic numbers are left out: 4 % HighlyKnown is under the filter.
relations="capital continent country demonym state symbol"
filter=0.05
ff=.venv/bin/factual-forgetting

bash scripts/real_base.sh "$name" "$out/base"
"$ff" classify --facts atlas --relations $relations --device cpu \
    --model_args "pretrained=$out/base,dtype=float32" \
    --quota "$quota" --min_highly_known "$filter" --output_path "$out/labels"
[ -e "$out/bundle/manifest.json" ] || "$ff" bundle build "$out/labels" $sizes \
    --min_highly_known "$filter" --output_path "$out/bundle"
