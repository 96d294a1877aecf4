# shellcheck shell=bash
# Makes .venv with what requirements.txt pins, once for each content of that
# file. Sourced by the other scripts, from the root of the project, or run:
#   bash launch/setup.sh [EXTRA]   EXTRA: of setup.cfg, such as test, plan, tpu

make_venv() {
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is older than 3.11; set PYTHON=/path/to/a/newer/python3." >&2
    return 2
  }
  # A setup that was interrupted may have left a half-made environment.
  .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
  local stamp=.venv/installed-${1:-base}
  local wanted
  wanted=$(cat requirements.txt setup.cfg | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (a minute or two, once) ..." >&2
    .venv/bin/python -m pip install -qq --disable-pip-version-check \
      --constraint requirements.txt --editable ".${1:+[$1]}"
    echo "$wanted" >"$stamp"
  fi
}

# Makes .venv-NAME: what .venv has, and over it what launch/NAME.txt pins.
# `peers` takes 5.5 GB of disk, as torch brings CUDA's libraries.
make_layered_venv() {
  local name=$1 stamp=.venv-$1/installed constraints wanted
  wanted=$(cat requirements.txt "launch/$name.txt" | cksum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  echo "installing into .venv-$name (a few minutes, once) ..." >&2
  .venv/bin/python -m venv --clear ".venv-$name"
  local site='import sysconfig; print(sysconfig.get_path("purelib"))'
  .venv/bin/python -c "$site" >"$(".venv-$name/bin/python" -c "$site")/venv.pth"
  # Its own pins come before those of requirements.txt.
  constraints=.venv-$name/constraints.txt
  sed -n 's/==.*/==/p' "launch/$name.txt" |
    grep --invert-match --ignore-case --fixed-strings --file=- requirements.txt \
      >"$constraints"
  ".venv-$name/bin/python" -m pip install -qq --disable-pip-version-check \
    --constraint "$constraints" --requirement "launch/$name.txt"
  echo "$wanted" >"$stamp"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  cd "$(dirname "$0")/.."
  make_venv "$@"
fi
