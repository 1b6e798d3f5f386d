#!/usr/bin/env bash
# Makes .venv if there is none and installs the package with the extra given (hf or dev).
# Lets lm_eval find the tasks by name; `factual-forgetting unregister` undoes that.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-hf}

if [ ! -x .venv/bin/python ]; then
    for python in python3 python3.11 python3.12 python3.13; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$python" -m venv .venv
            break
        fi
    done
    [ -x .venv/bin/python ] || { echo "Python 3.11 or newer is needed, with venv." >&2; exit 1; }
fi

# Nothing is installed again until what it depends on changes.
stamp=".venv/installed-$extra"
wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable ".[$extra]" >&2
    echo "$wanted" > "$stamp"
fi
.venv/bin/factual-forgetting register > /dev/null
