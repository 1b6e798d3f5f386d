#!/usr/bin/env bash
# The methods on a real base, after real_model.sh has made its bundle: trained, scored, recorded.
#     bash scripts/real_runs.sh OUTPUT [SEED...]
# Each at the one rate that small-v1 names, chosen before any was run: one trial. Half an hour to
# three quarters a run on one core of a server, methods with a teacher longer; killed and started
# again, it resumes. Two at once: start it twice, with other seeds.
set -euo pipefail
out=$(cd "${1:?OUTPUT of real_model.sh}" && pwd)
shift
cd "$(dirname "$0")/.."
records=$PWD/leaderboard/records
ff=$PWD/.venv/bin/factual-forgetting
bash scripts/setup.sh hf
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
cd "$out" # the bundle names its base by a path from here

run() { # name, seed, method, its settings
  run=runs/$1-$2
  [ -f "$run/run.json" ] || "$ff" finetune --bundle bundle --protocol small-v1 --method "$3" \
    ${4:+--method_args "$4"} --seed "$2" --output_path "$run"
  [ -d "results/$1-$2" ] || { "$ff" score --model_args "$run" --bundle bundle --batch_size 32 \
    --output_path "results/$1-$2.part" > /dev/null && mv "results/$1-$2.part" "results/$1-$2"; }
  "$ff" record "results/$1-$2" --bundle bundle --submitter factual-forgetting --trials 1 \
    --output_path "$records"
}
for seed in "${@:-0}"; do
  run sft "$seed" sft
  run known_only "$seed" known_only
  run distilled_base "$seed" self_distillation teacher=base,weight=1.0,tau=0.5
  run distilled_snapshot "$seed" self_distillation teacher=snapshot,weight=1.0,tau=0.5
  run distilled_few_shot "$seed" few_shot_distillation weight=1.0,tau=0.5
  run attention "$seed" freeze trainable=attention
  run ffn "$seed" freeze trainable=ffn
  run lora "$seed" lora rank=16,alpha=128.0,target=all-linear
  run replay "$seed" replay ratio=0.5
  run l2 "$seed" l2 to=base,weight=0.03
  run ewc "$seed" ewc weight=100.0
  run known_last "$seed" known_last epochs=1
  run context "$seed" context_distillation weight=1.0,tau=1.0
  run wise_ft "$seed" wise_ft points=8
  run early_stop "$seed" early_stop
done
