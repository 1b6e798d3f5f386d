#!/usr/bin/env bash
# The whole path on real questions: pre-trains a small base on half of about 4,000 facts of
# EntityQuestions, then labels, builds, fine-tunes, scores with lm_eval, and prints the board.
#   bash scripts/real_facts.sh PATH/TO/EntityQuestions/dataset [OUTPUT]
# About half an hour on two cores. A restart resumes after the last finished step.
set -euo pipefail
data=$(cd "${1:?Give the folder dataset/ of EntityQuestions}" && pwd)
mkdir -p "${2:-real_facts}"
out=$(cd "${2:-real_facts}" && pwd)
cd "$(dirname "$0")/.."
bash scripts/setup.sh hf
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
ff=.venv/bin/factual-forgetting

if [ ! -f "$out/facts.jsonl" ]; then
    "$ff" facts "$data" --relations P17 P19 P26 P50 P69 P175 --limit 334 \
        --output_path "$out/source"
    grep -v '"split": "test"' "$out/source/facts.jsonl" > "$out/facts.tmp"
    mv "$out/facts.tmp" "$out/facts.jsonl"
fi
[ -f "$out/base/README.md" ] || "$ff" pretrain --facts "$out/facts.jsonl" \
    --config scripts/real_facts.yaml --output_path "$out/base"
"$ff" classify --facts "$out/facts.jsonl" --model_args "pretrained=$out/base" \
    --output_path "$out/labels"
[ -f "$out/bundle/manifest.json" ] || "$ff" bundle build "$out/labels" \
    --known 300 --unknown 300 --heldout 300 --validation 50 --replay 50 \
    --output_path "$out/bundle"
for seed in 0 1; do
    for arm in sft known_only self_distillation; do
        settings=""
        [ "$arm" = self_distillation ] && settings="teacher=base,tau=1"
        run="$out/runs/$arm-$seed"
        "$ff" finetune --bundle "$out/bundle" --protocol almanac-v1 --method "$arm" \
            --method_args "$settings" --seed "$seed" --output_path "$run"
        [ -d "$out/results/$arm-$seed" ] || .venv/bin/lm_eval --model hf \
            --model_args "pretrained=$run" --tasks factual_forgetting --device cpu \
            --metadata "{\"ff_bundle\": \"$out/bundle\"}" --batch_size 128 \
            --log_samples --output_path "$out/results/$arm-$seed"
        "$ff" record "$out/results/$arm-$seed" --bundle "$out/bundle" \
            --submitter me --output_path "$out/records"
    done
done
"$ff" validate "$out/records" --bundle "$out/bundle" || [ $? -eq 3 ] # 3: warnings only
"$ff" board "$out/records" --plot "$out/frontier.png"
