# shellcheck shell=bash
# Sourced by the launchers: how they take a step, and how they say no.
#   fail MESSAGE [CODE]     one line, and the end (1: it failed, 2: wrong call)
#   say MESSAGE             progress, on stderr
#   need COMMAND WHY        fails where the command is not installed
#   run COMMAND ...         runs it; where $dry_run is set, prints it instead

dry_run=''

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

# Older ones take an empty list for an unset variable.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "Bash $BASH_VERSION is older than 4.4; on macOS, brew install bash."

say() {
  echo "$(date +%H:%M:%S) $1" >&2
}

need() {
  [ "$dry_run" ] || command -v "$1" >/dev/null || fail "no command $1: $2"
}

run() {
  if [ "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# The words on one line, such that a shell reads the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}
