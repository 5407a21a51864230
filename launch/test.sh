#!/usr/bin/env bash
# Sets up .venv and runs what every change must pass: lint, format, types, tests. Ends with the ten
# slowest tests.
# Arguments go to pytest: bash launch/test.sh -k packing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n 2 --durations=10 "$@"
