"""A run's config: its type, and the checks that no other part makes."""

from typing import Any

from clip_jax.errors import UsageError
from clip_jax.models.layers import REMAT_POLICIES

# An ml_collections ConfigDict with the fields of configs/base.py; they are
# made at run time, so that a type checker knows none of them.
Config = Any


def check_config(config: Config) -> None:
  """Refuses values that would fail late, or not at all.

  Raises:
    UsageError: the first field that is impossible.
  """
  for name in ('total_steps', 'log_every_steps'):
    if config[name] < 1:
      raise UsageError(f'{name}={config[name]} must be at least 1.')
  for name in ('max_skipped_steps', 'stall_seconds'):
    if config[name] < 0:
      raise UsageError(f'{name}={config[name]} must be at least 0.')
  if config.evaluation.batch_size < 1:
    raise UsageError(
      f'evaluation.batch_size={config.evaluation.batch_size} must be at '
      'least 1.'
    )
  metric = config.checkpoint.best_metric
  tasks = config.evaluation.tasks
  if metric and metric.split('/')[:2] not in [['eval', task] for task in tasks]:
    raise UsageError(
      f'checkpoint.best_metric={metric!r} is not measured: use '
      f'eval/TASK/METRIC with a TASK of evaluation.tasks={tuple(tasks)}.'
    )
  if config.checkpoint.every_steps < 1 or config.checkpoint.keep < 1:
    raise UsageError(
      f'checkpoint.every_steps={config.checkpoint.every_steps} and '
      f'checkpoint.keep={config.checkpoint.keep} must be at least 1.'
    )
  choices = {
    'model.dtype': (config.model.dtype, ('float32', 'bfloat16')),
    'model.remat': (config.model.remat, tuple(REMAT_POLICIES)),
    'optimizer.mu_dtype': (
      config.optimizer.mu_dtype,
      ('float32', 'bfloat16'),
    ),
    'objective.name': (config.objective.name, ('softmax',)),
  }
  for name, (value, known) in choices.items():
    if value not in known:
      raise UsageError(f'{name}={value!r}: choose one of {", ".join(known)}.')
