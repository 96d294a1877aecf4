#!/usr/bin/env bash
#SBATCH --job-name=clip-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=TERM@120
# Trains under Slurm. Called by hand, it submits itself; called by Slurm, it
# trains. The lines above are sbatch's; --signal asks for SIGTERM, to all
# processes of training, two minutes before the time is up.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains under Slurm, one process a task, and goes on after preemptions and when
the time of a job is up.

usage:
  bash launch/slurm.sh [--sbatch=FLAG …] --config=configs/NAME.py --workdir=DIR
      [--config.KEY=VALUE …]

examples:
  bash launch/slurm.sh --sbatch=--nodes=4 --sbatch=--gpus-per-node=8 \
      --sbatch=--ntasks-per-node=8 --sbatch=--time=24:00:00 \
      --config=configs/vit_b32.py --workdir=/scratch/me/vit_b32
  EXTRA= bash launch/slurm.sh --sbatch=--nodes=2 \
      --config=configs/emoji.py --workdir=runs/emoji

On GPUs, JAX gives each task one of them: as many tasks a node as GPUs. The
project and DIR must be where all nodes see them (or DIR is gs://…). Training
that was stopped has saved; its job goes back into the queue under the same
number, and resumes from DIR. scancel ends it for good.

flags:
  --sbatch=FLAG   for sbatch; may be repeated
  --dry-run       print the commands, run nothing
  --help          this

environment:
  EXTRA           what to install beside the package: gpu (default), tpu, or
                  nothing, for CPUs
  PYTHON          a Python of at least 3.11, where python3 is older
TEXT
}

submit() {
  cd "$(dirname "$0")/.."
  . launch/steps.sh
  local flag workdir='' config='' sbatch_flags=() train_flags=()
  for flag in "$@"; do
    case "$flag" in
      --sbatch=*) sbatch_flags+=("${flag#*=}") ;;
      --dry-run) dry_run=yes ;;
      --help | -h) usage && exit ;;
      --config=*) config=${flag#*=} && train_flags+=("$flag") ;;
      --workdir=*) workdir=${flag#*=} && train_flags+=("$flag") ;;
      --config.*=* | --profile=*) train_flags+=("$flag") ;;
      *) fail "slurm.sh does not take $flag (see --help)." 2 ;;
    esac
  done
  [ -f "${config%%:*}" ] || fail "--config=$config is no file." 2
  [ "$workdir" ] || fail 'no --workdir: name a folder that all nodes see.' 2
  need sbatch 'submit from a machine of the Slurm cluster.'
  run bash launch/setup.sh "${EXTRA-gpu}" || fail 'the installation failed.'
  run sbatch "${sbatch_flags[@]}" --chdir="$PWD" launch/slurm.sh \
    "${train_flags[@]}" || fail 'sbatch refused the job; it says why above.'
}

# Slurm runs a copy of this file elsewhere, in the folder of --chdir. JAX finds
# the other processes through the variables that srun sets. The first process to
# end must not end the others at once: one may still be writing the checkpoint.
train() {
  local code=0
  srun --kill-on-bad-exit=0 --wait=120 \
    .venv/bin/clip-jax train --stopped_exit_code=75 "$@" || code=$?
  if [ "$code" = 75 ]; then
    echo 'stopped and saved: back into the queue.'
    # Slurm has done so itself, where it was a preemption.
    scontrol requeue "$SLURM_JOB_ID" || true
  fi
  exit "$code"
}

if [ "${SLURM_JOB_ID:-}" ]; then
  train "$@"
else
  submit "$@"
fi
