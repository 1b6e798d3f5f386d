#!/usr/bin/env bash
# Runs the scoring tests on another version of lm-eval: scripts/check_lm_eval.sh 0.4.12
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?Name a version of lm-eval}
python=${PYTHON:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder"
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# Everything else comes from the environment at hand; the new lm-eval is found first.
site "$python" > "$(site "$folder/bin/python")/zz_environment.pth"
"$folder/bin/pip" install --quiet --no-deps "lm_eval==$version"
"$folder/bin/python" -c "import lm_eval; assert lm_eval.__version__ == '$version'"
OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -m "" tests/scoring/test_score.py \
    tests/scoring/test_agreement.py
