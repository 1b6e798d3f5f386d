#!/usr/bin/env bash
# Checkpoints of a real base that never saw D_train, in the board's third table: LoRAs that TRL
# trained on an invented world, and one that is half merged into the base:
#     bash scripts/any_checkpoints.sh BASE BUNDLE OUTPUT
# BUNDLE is official; its records get three more. A quarter of an hour on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${1:?BASE BUNDLE OUTPUT} bundle=${2:?BASE BUNDLE OUTPUT} out=${3:?BASE BUNDLE OUTPUT}
bash scripts/setup.sh atlas
.venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt trl
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
for steps in 8 40; do
  [ -f "$out/lora-$steps/adapter_config.json" ] || .venv/bin/python scripts/examples/trl_lora.py \
    --model "$base" --facts atlas --steps "$steps" --output_path "$out/lora-$steps"
done
# Half of a LoRA's scale is the mean of the base's weights and the tuned ones.
rm -rf "$out/lora-40-half" && cp -r "$out/lora-40" "$out/lora-40-half"
sed -i 's/"lora_alpha": 32/"lora_alpha": 16/' "$out/lora-40-half/adapter_config.json"

submit() { # adapter, method, its settings
  status=0
  .venv/bin/factual-forgetting submit "pretrained=$base,peft=$out/$1,dtype=float32" \
    --bundle "$bundle" --submitter factual-forgetting --tasks factual_forgetting_fewshot \
    --method "$2" --method_args "$3" --no-trained --heldout excluded \
    --training_data "an invented world, by scripts/examples/trl_lora.py" \
    --batch_size 32 --output_path "$out/results" || status=$?
  [ "$status" -eq 0 ] || [ "$status" -eq 3 ]
}
submit lora-8 trl-lora rank=16,alpha=32,steps=8
submit lora-40 trl-lora rank=16,alpha=32,steps=40
submit lora-40-half merge weight=0.5,of=trl-lora,steps=40
