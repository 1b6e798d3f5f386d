#!/usr/bin/env bash
# Has the validator of every_eval_ever judge what `export` writes. It needs Python 3.12 and pins
# packages, so it gets an environment of its own, with no more than validation imports.
#
#   scripts/test_every_eval_ever.sh [DIRECTORY OF THE ENVIRONMENT]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-every-eval-ever}

if [ ! -e "$environment/ready" ]; then
    "${PYTHON312:-python3.12}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --no-deps every-eval-ever==0.3.0
    "$environment/bin/pip" install --quiet "jsonschema>=4.26,<5" "pydantic>=2.12.5,<3" \
        "huggingface-hub>=1,<2" pyyaml requests "rich>=14,<15"
    touch "$environment/ready"
fi

export EVERY_EVAL_EVER="$PWD/$environment/bin/python" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
case "$environment" in /*) export EVERY_EVAL_EVER="$environment/bin/python" ;; esac
exec "${PYTHON:-.venv/bin/python}" -m pytest tests/board/test_exports.py -m "slow or not slow" -ra
