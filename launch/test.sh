#!/usr/bin/env bash
# From a fresh machine to a tested project: makes .venv, then lint, types, tests.
#   bash launch/test.sh [pytest arguments]     e.g. -m 'not slow', -k tokenizer
#   bash launch/test.sh peers                  only the tests that need torch,
#                                              open_clip and transformers
#   bash launch/test.sh engines                only the tests that need Beam,
#                                              Ray and img2dataset
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh
make_venv test
export JAX_PLATFORMS=cpu

# Without these, the tests would be skipped.
declare -A needed=(
  [peers]='open_clip, torch, transformers'
  [engines]='apache_beam, img2dataset, ray'
)
if [ -n "${1:-}" ] && [ -n "${needed[$1]:-}" ]; then
  make_layered_venv "$1"
  ".venv-$1/bin/python" -c "import ${needed[$1]}"
  exec ".venv-$1/bin/python" -m pytest -m "$1" "${@:2}"
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/basedpyright
# Two workers, a file each at a time: most of a test is one thread compiling.
# The order is that of tests/conftest.py, which knows the slow ones.
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile \
  --no-loadscope-reorder "$@"
