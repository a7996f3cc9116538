#!/usr/bin/env bash
# All that a change must pass: format, lint, types, tests. Run it inside the environment that has the `test` extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -m ruff format --check .
python -m ruff check .
python -m mypy
python -m pytest -n auto "$@"
