"""Trains a model; run again with the same workdir, goes on where it was.

usage:
  clip-jax train --config=configs/NAME.py[:ARG] --workdir=DIR
      [--config.KEY=VALUE …]

examples:
  clip-jax train --config=configs/emoji.py --workdir=runs/emoji
  clip-jax train --config=configs/emoji.py --workdir=runs/short \\
      --config.total_steps=200 --config.optimizer.learning_rate=1e-3
  clip-jax train --config=configs/emoji.py --workdir=runs/folder \\
      --config.data.train=folder:pictures --config.tokenizer=clip

configs/base.py says every field with its unit and default. The workdir gets
config.json, metrics.jsonl, tensorboard/, checkpoints/ and report.html. SIGTERM
or Ctrl-C saves and ends; the same command then goes on from there. To whatever
started it, such a stop looks like success: --stopped_exit_code=75 tells them
apart, for a launcher that starts a stopped run again (launch/).
"""

import shlex
import sys

from absl import flags

from clip_jax.commands.config_file import define_config, parse
from clip_jax.errors import UsageError

__all__ = ['define_flags', 'parse', 'run']


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  define_config(values)
  flags.DEFINE_string(
    'workdir', None, 'the run directory, made if missing', flag_values=values
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
  """Trains, and says where the results are."""
  if words:
    raise UsageError(f'train takes flags only, not {words[0]!r}.')
  if values.config is None:
    raise UsageError('no --config: name a file, such as configs/emoji.py.')
  if not values.workdir:
    raise UsageError('no --workdir: name a folder for the run.')

  from clip_jax.parallel.devices import use_cpu_devices

  use_cpu_devices(values.config.mesh.cpu_devices)

  from clip_jax.training.loop import train

  command = shlex.join(['clip-jax', *sys.argv[1:]])
  outcome = train(values.config, values.workdir, command)
  if not outcome.finished:
    print(
      f'stopped and saved at step {outcome.step:,}; the same command goes on '
      'from there.'
    )
    if values.stopped_exit_code:
      sys.exit(values.stopped_exit_code)
    return
  for name, value in outcome.metrics.items():
    print(f'{name} {value:.4g}')
  print(f'trained to step {outcome.step:,}; report: {outcome.report}')
