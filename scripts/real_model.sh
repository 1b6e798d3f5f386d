#!/usr/bin/env bash
# What a real base knows of the atlas, and a bundle of that:
#     bash scripts/real_model.sh smollm2|gemma OUTPUT
# OUTPUT gets the base, labels/ and bundle/. An hour or two on one core; killed and started again, it resumes.
# More facts: QUOTA="known=1060,unknown=1100,heldout=1100,validation=80,replay=80" SIZES="1000 1000 1000" POPULATION=1.
set -euo pipefail
mkdir -p "${2:?smollm2 or gemma, and OUTPUT}"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
ff=$PWD/.venv/bin/factual-forgetting
case $1 in smollm2) base=smollm2-135m-instruct ;; *) base=gemma-3-270m ;; esac
bash scripts/setup.sh atlas
bash scripts/real_base.sh "$1" "$out/$base"

# A bundle may use fewer of a relation than there are: some to spare.
quota=${QUOTA:-known=480,unknown=500,heldout=480,validation=80,replay=80}
read -r known unknown heldout <<< "${SIZES:-420 420 420}"
# Under the usual filter of 30 % the countries of cities would fall out (SmolLM2: 11 % HighlyKnown),
# which are most of the facts. Currencies and atomic numbers, 4 %, are under this one too, and
# aren't asked.
filter=0.08
# Ten configurations, as Gekhman et al. 2024: of so small a base one in twenty, whose exemplars lead
# astray, halves what is right in all.
runs=10
relations="capital continent country demonym state symbol"

cd "$out" # the base is recorded by its name, not by where it lies
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# shellcheck disable=SC2086 # a list of relations
"$ff" classify --facts atlas --relations $relations --device cpu \
    --runs "$runs" --min_popularity "${POPULATION:-50000}" --model_args "pretrained=$base,dtype=float32" \
    --quota "$quota" --min_highly_known "$filter" --output_path labels
[ -f bundle/manifest.json ] || "$ff" bundle build labels --known "$known" --unknown "$unknown" \
    --heldout "$heldout" --validation 60 --replay 60 --min_highly_known "$filter" \
    --output_path bundle
