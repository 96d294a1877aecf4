#!/usr/bin/env bash
# Trains on Cloud TPU through queued resources; launch/README.md walks through.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

usage() {
  cat <<'TEXT'
Trains on a Cloud TPU slice, or on several, and goes on after preemptions.

usage:
  bash launch/tpu_pod.sh train --name=NAME --zone=ZONE --topology=v5e:16x16
      --config=configs/NAME.py --workdir=gs://BUCKET/RUN [--config.KEY=VALUE …]
  bash launch/tpu_pod.sh follow|status|stop|delete --name=NAME --zone=ZONE

verbs:
  train    creates the queued resource, or uses the one of that name; waits
           until it is active; copies the project, installs it and starts
           training on all workers; follows the log of worker 0. After a
           preemption, all of it again: training resumes from the workdir.
           It may be interrupted at any time, and run again: training goes on
           meanwhile, but nobody sees to a preemption.
  follow   follows the log of worker 0 until training ends
  status   prints the state of the queued resource (nothing: there is none)
  stop     lets training save and end; the TPU stays, and costs
  delete   deletes the queued resource with its TPU

flags:
  --name=NAME           of the queued resource
  --zone=ZONE           such as us-west4-a
  --project=PROJECT     default: gcloud's
  --topology=KIND:AxB   v4, v5e, v5p or v6e, as clip-jax plan takes it
  --slices=N            so many slices of it (1); sets mesh.slices too
  --spot                cheaper, and may be preempted
  --runtime=VERSION     of the machines' image; default: by the kind
  --env=KEY=VALUE       in the environment of training; may be repeated
  --create=FLAG         more for `queued-resources create`, such as
                        --create=--reserved; may be repeated
  --ssh=FLAG            more for ssh and scp, such as --ssh=--internal-ip;
                        may be repeated
  --max-restarts=N      after failures (3); preemptions are not counted
  --delete-after        delete the queued resource when training has ended
  --dry-run             print the commands, run nothing
  --help                this

environment:
  POLL_SECONDS          between two looks at the state (30)

exit codes: 0 done, 1 it failed, 2 the call was wrong
TEXT
}

name='' zone='' topology='' slices=1 runtime='' max_restarts=3 delete_after=''
config='' workdir=''
where=() create_flags=() ssh_flags=() environment=() train_flags=()
poll=${POLL_SECONDS:-30}
interrupted=75  # training was stopped from outside, and may be started again

parse() {
  local flag
  for flag in "$@"; do
    case "$flag" in
      --name=*) name=${flag#*=} ;;
      --zone=*) zone=${flag#*=} ;;
      --project=*) where+=("$flag") ;;
      --topology=*) topology=${flag#*=} ;;
      --slices=*) slices=${flag#*=} ;;
      --spot) create_flags+=("$flag") ;;
      --runtime=*) runtime=${flag#*=} ;;
      --env=*=*) environment+=("${flag#*=}") ;;
      --create=*) create_flags+=("${flag#*=}") ;;
      --ssh=*) ssh_flags+=("${flag#*=}") ;;
      --max-restarts=*) max_restarts=${flag#*=} ;;
      --delete-after) delete_after=yes ;;
      --dry-run) dry_run=yes ;;
      --help | -h) usage && exit ;;
      --config=*) config=${flag#*=} && train_flags+=("$flag") ;;
      --workdir=*) workdir=${flag#*=} && train_flags+=("$flag") ;;
      --config.*=* | --profile=*) train_flags+=("$flag") ;;
      *) fail "tpu_pod.sh does not take $flag (see --help)." 2 ;;
    esac
  done
}

check() {
  [ "$name" ] || fail 'no --name: what is the queued resource to be called?' 2
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    fail "--name=$name must be lower-case letters, digits and hyphens." 2
  [ "$zone" ] || fail 'no --zone, such as --zone=us-west4-a.' 2
  need gcloud 'install the Google Cloud CLI, then run gcloud auth login.'
  where+=(--zone="$zone" --quiet)
}

# Before anything is paid for.
check_train() {
  accelerator >/dev/null
  local count
  for count in "$slices" "$max_restarts"; do
    [[ $count =~ ^[0-9]+$ ]] ||
      fail "--slices and --max-restarts are whole numbers, not '$count'." 2
  done
  [ "$slices" -ge 1 ] || fail '--slices must be at least 1.' 2
  [[ $config = configs/* && -f ${config%%:*} ]] ||
    fail "--config=$config is no file in configs/, which is what gets copied." 2
  [[ $workdir = gs://?* ]] ||
    fail "--workdir=$workdir must be gs://…: the machines' disks go with them." 2
  [ "$slices" = 1 ] || train_flags+=("--config.mesh.slices=$slices")
}

# gcloud's name for the slice. v4 and v5p count cores, two a chip; the shape of
# theirs is the default one for the count.
accelerator() {
  [[ $topology =~ ^(v4|v5e|v5p|v6e):([0-9]+)x([0-9]+)(x([0-9]+))?$ ]] ||
    fail "--topology=$topology must be such as v5e:16x16 or v5p:4x4x8." 2
  local chips=$((BASH_REMATCH[2] * BASH_REMATCH[3] * ${BASH_REMATCH[5]:-1}))
  case "${BASH_REMATCH[1]}" in
    v4) echo "v4-$((2 * chips))" ;;
    v5e) echo "v5litepod-$chips" ;;
    v5p) echo "v5p-$((2 * chips))" ;;
    v6e) echo "v6e-$chips" ;;
  esac
}

image() {
  case "$topology" in
    v4:*) echo tpu-ubuntu2204-base ;;
    v5e:*) echo v2-alpha-tpuv5-lite ;;
    v5p:*) echo v2-alpha-tpuv5 ;;
    v6e:*) echo v2-alpha-tpuv6e ;;
  esac
}

# --- Steps: each is one command or two -------------------------------------

queued_resources() {
  run gcloud compute tpus queued-resources "$@" "${where[@]}"
}

# Into $state; empty where there is no such queued resource.
look() {
  local _
  for _ in 1 2 3 4 5; do
    state=$(queued_resources list "--filter=name~/$name\$" \
      '--format=value(state.state)') && return
    sleep "$poll"
  done
  fail "the state of $name could not be read; gcloud says why above."
}

create() {
  local nodes=(--node-id="$name")
  [ "$slices" = 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  queued_resources create "$name" --accelerator-type="$(accelerator)" \
    --runtime-version="${runtime:-$(image)}" "${nodes[@]}" "${create_flags[@]}"
}

delete() {
  queued_resources delete "$name" --force
}

on_all() {
  queued_resources ssh "$name" --node=all --worker=all "${ssh_flags[@]}" \
    "--command=$1"
}

# A machine that is gone does not say so: ssh has to ask.
on_worker_0() {
  queued_resources ssh "$name" --node=0 --worker=0 "${ssh_flags[@]}" \
    --ssh-flag=-oServerAliveInterval=30 \
    "--command=bash clip_jax/launch/worker.sh $1"
}

deploy() {
  local archive=${TMPDIR:-/tmp}/clip_jax-$name.tar.gz
  run tar -czf "$archive" --exclude=__pycache__ clip_jax configs launch \
    requirements.txt setup.cfg pyproject.toml README.md LICENSE &&
    queued_resources scp "$archive" "$name:clip_jax.tar.gz" \
      --node=all --worker=all "${ssh_flags[@]}" &&
    on_all 'mkdir -p clip_jax && tar -xzf clip_jax.tar.gz -C clip_jax && bash clip_jax/launch/worker.sh install'
}

start() {
  on_all "$(quoted env "${environment[@]}" \
    bash clip_jax/launch/worker.sh start "${train_flags[@]}")"
}

# --- One attempt, and the next ---------------------------------------------

# Returns once the queued resource is active, or $interrupted where it was taken
# back before. One that is not spot fails for a reason that stays.
acquire() {
  look
  while [[ $state = *ING && $state != PROVISIONING ]]; do
    sleep "$poll"  # SUSPENDING, DELETING; CREATING
    look
  done
  if [ "$state" = FAILED ] || [ "$state" = SUSPENDED ]; then
    delete || fail "$name could not be deleted."
    state=''
  fi
  [ "$state" ] || create || fail "$name could not be created."
  local before=''
  while true; do
    look
    [ "$state" = "$before" ] || say "$name: ${state:-not there yet}"
    before=$state
    case "$state" in
      ACTIVE) return ;;
      SUSPENDING | SUSPENDED) return "$interrupted" ;;
      FAILED)
        [[ " ${create_flags[*]} " != *' --spot '* ]] || return "$interrupted"
        return 1
        ;;
      DELETING) return 1 ;;
    esac
    sleep "$poll"
  done
}

# Preempted machines die before their queued resource says so.
lost() {
  local _
  for _ in 1 2 3 4; do
    look
    [ "$state" = ACTIVE ] || return 0
    sleep "$poll"
  done
  return 1
}

# Returns the code of training, or $interrupted where the machines went.
follow() {
  local code
  while true; do
    code=0
    on_worker_0 wait || code=$?
    case "$code" in 0 | 2) return "$code" ;; esac
    if lost; then return "$interrupted"; fi
    on_worker_0 running 2>/dev/null || return "$code"
    say 'the connection was lost, training was not: following it again.'
  done
}

# Returns as `follow` does, and 1 where training could not be started.
attempt() {
  acquire || return
  if ! on_worker_0 running 2>/dev/null && ! { deploy && start; }; then
    if lost; then return "$interrupted"; fi
    return 1
  fi
  follow
}

train() {
  local code restarts=0
  trap 'say "training goes on; run the same command to follow it."; exit 130' INT
  while true; do
    code=0
    attempt || code=$?
    case "$code" in
      0) break ;;
      2) fail "clip-jax train refused its call (above); $name is left as it is." 2 ;;
      "$interrupted") say "$name was interrupted: starting again." ;;
      *)
        restarts=$((restarts + 1))
        [ "$restarts" -le "$max_restarts" ] || fail \
          "$name failed $restarts times, the last with code $code (above); it is left as it is: tpu_pod.sh delete ends its cost."
        say "$name failed (code $code): restart $restarts of $max_restarts."
        ;;
    esac
    # The other workers may not have noticed yet.
    [ "$state" != ACTIVE ] || on_all 'bash clip_jax/launch/worker.sh stop' || true
  done
  say 'training has ended.'
  [ ! "$delete_after" ] || delete
}

# What `train` runs where all goes well, and after a preemption.
rehearse() {
  echo '# create it, where this prints nothing; wait until it prints ACTIVE'
  state='' && look && echo "$state"
  create
  echo '# then, unless training runs already'
  on_worker_0 running
  deploy
  start
  echo '# and until it ends'
  on_worker_0 wait
  echo '# after a preemption (SUSPENDED or FAILED), and then all of the above'
  delete
  [ ! "$delete_after" ] || echo '# at the end, the same once more'
}

verb=${1:-}
case "$verb" in
  train | follow | status | stop | delete) ;;
  --help | -h) usage && exit ;;
  *) fail "tpu_pod.sh takes train, follow, status, stop or delete, not '$verb' (see --help)." 2 ;;
esac
parse "${@:2}"
check
case "$verb" in
  train)
    check_train
    if [ "$dry_run" ]; then rehearse; else train; fi
    ;;
  follow) on_worker_0 wait ;;
  status) look && echo "$state" ;;
  stop) on_all 'bash clip_jax/launch/worker.sh stop' ;;
  delete) delete ;;
esac
