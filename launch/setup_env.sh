#!/usr/bin/env bash
# Makes the environment .venv with the package and its development tools; does nothing if it exists
# and is current. Arguments are more extras: bash launch/setup_env.sh gpu notebook
# PYTHON=/path/to/python chooses the interpreter (3.11, 3.12 or 3.13).
set -euo pipefail

for argument in "$@"; do
    case $argument in
        -h | --help)
            sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
            echo "Extras: gpu, gpu-cuda12, tpu, energy, chgnet, mace, wandb, notebook, test; dev always."
            exit 0
            ;;
        -*)
            echo "error: $argument is no extra; bash launch/setup_env.sh --help lists them" >&2
            exit 1
            ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/installed
# The installation depends on these files, and on the path of the checkout (it is editable).
fingerprint=$({ pwd; cat setup.cfg requirements.txt pyproject.toml; } | cksum)

is_current() {
    [ -f "$stamp" ] && .venv/bin/python -c '' 2>/dev/null || return 1
    [ "$(head -n 1 "$stamp")" = "$fingerprint" ] || return 1
    local extra
    for extra in "$@"; do
        grep -qx "$extra" "$stamp" || return 1
    done
}

is_usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if is_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 found (python3 is $(python3 --version 2>&1 || true))." >&2
    echo "Install one, or give its path: PYTHON=/path/to/python bash launch/setup_env.sh" >&2
    return 1
}

if is_current dev "$@"; then
    exit 0
fi

if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    if ! is_usable "$python"; then
        echo "error: PYTHON=$python is not a Python 3.11, 3.12 or 3.13." >&2
        exit 1
    fi
else
    python=$(find_python)
fi

# Extras of earlier calls stay.
extras=$({ echo dev; [ ! -f "$stamp" ] || tail -n +2 "$stamp"; printf '%s\n' "$@"; } | sed '/^$/d' | sort -u)
if ! .venv/bin/python -c '' 2>/dev/null; then
    echo "Making the environment .venv with $("$python" --version)."
    if ! "$python" -m venv --clear .venv; then
        echo "error: $python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
fi
echo "Installing the packages into .venv; the first time this takes a few minutes."
rm -f "$stamp"
.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
    --editable ".[$(echo "$extras" | paste -sd, -)]"
{ echo "$fingerprint"; echo "$extras"; } >"$stamp"
