#!/usr/bin/env bash
# On a TPU machine: installs the project, and trains out of reach of the ssh
# connection that started it. launch/tpu_pod.sh calls it, on every worker.
#   bash launch/worker.sh install
#   bash launch/worker.sh start TRAIN_FLAGS   returns at once; again: no harm
#   bash launch/worker.sh running             exit code 0 while training runs
#   bash launch/worker.sh wait                follows the log to its end, and
#                                             exits with the code of training
#   bash launch/worker.sh stop                lets training save, and end
# State is in runs/worker: log, pid, and the exit code of what has ended.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh
state=runs/worker
stop_seconds=${STOP_SECONDS:-120}

# The images of TPU machines may have an older Python: then uv brings one.
find_python() {
  local python
  for python in python3.11 python3.12 python3.13 python3; do
    if "$python" -c 'import sys, ensurepip
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  if python3 -m pip install -qq --user uv >&2 &&
    python3 -m uv python install --quiet 3.11 >&2; then
    python3 -m uv python find 3.11
  else
    fail 'no Python 3.11 or newer here, and none could be installed.'
  fi
}

install() {
  PYTHON=$(find_python)
  export PYTHON
  bash launch/setup.sh tpu
}

# Training holds the lock as long as it lives: no pid of before a reboot, which
# may be another process's by now, is taken for it.
running() {
  mkdir -p "$state"
  ! flock --nonblock "$state/lock" true
}

start() {
  if running; then
    say 'training runs here already.'
    return
  fi
  rm -f "$state/exit_code" "$state/stop_asked"
  exec 9>"$state/lock"
  flock --nonblock 9
  setsid bash launch/worker.sh train "$@" >>"$state/log" 2>&1 </dev/null &
  echo "$!" >"$state/pid"
}

# In the session that `start` made. Falling back to the CPU would train on it,
# at the price of a TPU.
train() {
  export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
  local code=0
  .venv/bin/clip-jax train --stopped_exit_code=75 "$@" &
  local pid=$!
  echo "$pid" >"$state/training_pid"
  # A machine that shuts down tells all processes; this one outlives training.
  trap : TERM
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do
    code=0
    wait "$pid" || code=$?
  done
  # Who asked it to stop does not want it to be started again.
  [ "$code" != 75 ] || [ ! -e "$state/stop_asked" ] || code=0
  echo "$code" >"$state/exit_code"
}

wait_for_end() {
  [ -e "$state/pid" ] || fail 'training was not started here.'
  tail --lines=100 --follow --pid="$(cat "$state/pid")" "$state/log"
  # No code: the machine or the kernel's memory killer ended it.
  exit "$(cat "$state/exit_code" 2>/dev/null || echo 137)"
}

stop() {
  running || return 0
  touch "$state/stop_asked"
  kill -TERM "$(cat "$state/training_pid")" 2>/dev/null || true
  local _
  for _ in $(seq "$stop_seconds"); do
    running || return 0
    sleep 1
  done
  kill -KILL "$(cat "$state/training_pid")" 2>/dev/null || true
}

case "${1:-}" in
  install | running | stop) "$1" ;;
  start | train) "$@" ;;
  wait) wait_for_end ;;
  *) fail "worker.sh takes install, start, running, wait or stop, not '${1:-}'." 2 ;;
esac
