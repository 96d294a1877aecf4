"""Trains a model; run again with the same workdir, it resumes.

usage:
  clip-jax train --config=configs/NAME.py[:ARG] --workdir=DIR
      [--config.KEY=VALUE …] [--profile=STEP:COUNT]

examples:
  clip-jax train --config=configs/emoji.py --workdir=runs/emoji
  clip-jax train --config=configs/emoji.py --workdir=runs/short \\
      --config.total_steps=200 --config.optimizer.learning_rate=1e-3
  clip-jax train --config=configs/emoji.py --workdir=runs/folder \\
      --config.data.train=folder:images --config.tokenizer=clip
  clip-jax train --config=configs/base.py --workdir=runs/tuned \\
      --config.initialize_from=ViT-B-32.pt --config.data.train=folder:images

With initialize_from, what the config leaves open (shapes, tokenizer, how images
become pixels) is that model's. A relative path, a tokenizer's too, is looked up
where the command is run. total_steps can be raised on a finished run.

configs/base.py says every field with its unit and default. The workdir gets
config.json, metrics.jsonl, tensorboard/, checkpoints/ and report.html. SIGTERM
or Ctrl-C saves and ends; the same command then goes on from there.

On several hosts, run the same command on each of them: Cloud TPU, GKE, Slurm
and Open MPI are recognised; elsewhere JAX_COORDINATOR_ADDRESS (host:port of
process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who, and
JAX_NUM_PROCESSES=1 keeps a process alone. The workdir has to be one that all of
them reach. A signal to any of them saves and ends all.

A run that was stopped and saved exits with 0, like a finished one;
--stopped_exit_code=75 lets a launcher tell them apart (launch/).
"""

import shlex
import sys
from typing import TYPE_CHECKING

from absl import flags

from clip_jax.commands import common_flags
from clip_jax.commands.config_file import (
  define_config,
  parse,
  stated_fields,
)
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  from clip_jax.training.profile import Profile

__all__ = ['define_flags', 'parse', 'run']


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  define_config(values)
  common_flags.define_path(
    values, 'workdir', 'the run directory, made if missing'
  )
  flags.DEFINE_string(
    'profile',
    '',
    'STEP:COUNT, trace COUNT steps from STEP on into WORKDIR/profile; prints '
    'how to view the trace',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'stopped_exit_code',
    0,
    'the exit code of a run that was asked to stop, and has saved',
    lower_bound=0,
    upper_bound=125,
    flag_values=values,
  )


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Trains, and prints where the results are."""
  common_flags.no_words('train', words)
  if values.config is None:
    raise UsageError('no --config: name a file, such as configs/emoji.py.')
  common_flags.require(values.workdir, 'workdir', 'name a folder for the run')
  common_flags.folder_of(values.workdir, 'workdir')

  from clip_jax.parallel.devices import keep_freed_memory, use_cpu_devices
  from clip_jax.parallel.distributed import (
    RESUME_ADVICE,
    detect_cluster,
    join_cluster,
  )
  from clip_jax.training.profile import Profile

  profile = Profile.parse(values.profile)
  keep_freed_memory()
  use_cpu_devices(values.config.mesh.cpu_devices)
  with join_cluster(detect_cluster(), RESUME_ADVICE):
    finished = _train(values, profile)
  # Not in the block, where it would be a failure of the process.
  if not finished and values.stopped_exit_code:
    sys.exit(values.stopped_exit_code)


def _train(values: flags.FlagValues, profile: 'Profile') -> bool:
  """Returns whether the run finished; False if it was stopped, and saved."""
  from clip_jax.parallel.distributed import is_first_process
  from clip_jax.training.loop import train
  from clip_jax.training.writers import default_outputs

  command = shlex.join(['clip-jax', *sys.argv[1:]])
  stated = stated_fields(values)
  outputs = default_outputs(command)
  outcome = train(values.config, values.workdir, outputs, profile, stated)
  if not is_first_process():
    return outcome.finished
  if not outcome.finished:
    print(
      f'stopped and saved at step {outcome.step:,}; the same command goes on '
      'from there.'
    )
    return False
  for name, value in outcome.metrics.items():
    print(f'{name} {value:.4g}')
  print(f'trained to step {outcome.step:,}; report: {outcome.report}')
  return True
