#!/usr/bin/env bash
# Makes a sister of the embedded base, taught the same world, and its bundle:
#     bash scripts/almanac_base.sh BASE BUNDLE [KEY=VALUE ...]
# Keys are those of almanac-base.yaml. BASE gets the checkpoint (model) and its labels.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${1:?BASE, BUNDLE and then KEY=VALUE} bundle=${2:?BUNDLE is missing}
shift 2
ff=.venv/bin/factual-forgetting
mkdir -p "$base"
cp benchmark/factual_forgetting/lab/almanac-base.yaml "$base/recipe.yaml"
for setting in "$@"; do
    sed -i "s/^${setting%%=*}: .*/${setting%%=*}: ${setting#*=}/" "$base/recipe.yaml"
done
[ -e "$base/model/config.json" ] ||
    "$ff" pretrain --facts almanac --config "$base/recipe.yaml" --output_path "$base/model"
"$ff" classify --facts almanac --model_args "pretrained=$base/model" --output_path "$base/labels"
"$ff" bundle build "$base/labels" --known 300 --unknown 300 --heldout 360 --validation 60 \
    --replay 60 --other_relations shelf --output_path "$bundle" > /dev/null
