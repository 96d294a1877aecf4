#!/usr/bin/env bash
# From a fresh machine to a tested project: makes .venv, then lint, types, tests.
#   bash launch/test.sh [pytest arguments]     e.g. -m 'not slow', -k tokenizer
#   bash launch/test.sh peers                  only the tests that need torch,
#                                              open_clip and transformers
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
make_venv test
export JAX_PLATFORMS=cpu

if [ "${1:-}" = peers ]; then
  make_peers_venv
  # Without them, the tests would be skipped.
  .venv-peers/bin/python -c 'import open_clip, torch, transformers'
  exec .venv-peers/bin/python -m pytest -m peers "${@:2}"
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/basedpyright
# Two workers, a file each at a time: most of a test is one thread compiling.
# The order is that of tests/conftest.py, which knows the slow ones.
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile \
  --no-loadscope-reorder "$@"
