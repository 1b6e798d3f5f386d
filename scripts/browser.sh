#!/usr/bin/env bash
# Gets what the page's browser tests need: Debian's chromium and selenium. Where either can't be
# had, those tests skip and say so; nothing else needs them.
set -uo pipefail
cd "$(dirname "$0")/.."

if ! { command -v chromium && command -v chromedriver; } > /dev/null; then
    apt=(apt-get)
    [ "$(id -u)" -eq 0 ] || apt=(sudo -n apt-get)
    { "${apt[@]}" update -qq &&
        DEBIAN_FRONTEND=noninteractive timeout 300 \
            "${apt[@]}" install -y -qq --no-install-recommends chromium chromium-driver; } \
        > /dev/null 2>&1 || echo "No chromium: the browser tests will skip." >&2
fi
if ! .venv/bin/python -c "import selenium" 2> /dev/null; then
    timeout 300 .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt "selenium>=4.20" > /dev/null 2>&1 ||
        echo "No selenium: the browser tests will skip." >&2
fi
exit 0
