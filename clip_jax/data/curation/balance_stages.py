"""The stages in which queries choose pairs; see `balance` for the rule."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from clip_jax.data.curation import balance, choosing
from clip_jax.data.curation.arrays import load_array, sum_counts, write_array
from clip_jax.data.curation.stages import Rows, Stages, parts_of

_NUMBERS_AT_ONCE = 2**22  # draws of frequent queries that a task sorts


class Balanced(NamedTuple):
  """The pairs that queries have chosen.

  Attributes:
    rows: the pairs.
    counts: int64 [2, Q], by query how many of these match it, and how many it
      chose.
    steps: the counts of the tasks, for the funnel.
  """

  rows: Rows
  counts: Int[np.ndarray, '2 Q']
  steps: list[Mapping[str, Any]]


def choose_pairs(
  stages: Stages,
  method: str,
  choice: choosing.Choice,
  rows: Rows,
  before: Int[np.ndarray, ' Q'],
) -> Balanced:
  """Lets each query choose at most `choice.per_query` of its pairs.

  Args:
    method: one of `balance.METHODS`.
    choice: its `limits` are written here.
    before: how many pairs match each query.
  """
  if method == 'sample':
    limits = balance.sampling_limits(before, choice.per_query)
  else:
    limits = _find_limits(stages, choice, rows, before)
  write_array(limits, choice.limits)
  tasks = [
    choosing.ChoiceTask(
      partition,
      inputs,
      stages.path(f'balance/{i:07}.arrow'),
      stages.path(f'balance/{i:07}.counts.npy'),
    )
    for i, (inputs, partition) in enumerate(rows.tasks())
  ]
  function = functools.partial(choosing.choose, choice)
  steps = stages.run('balance', tasks, function, 'partitions')
  counts = sum_counts([x.counts or '' for x in tasks], 2, len(before))
  paths = tuple(task.out for task in tasks)
  return Balanced(Rows(paths, 1, rows.schema, False), counts, [*steps])


def _find_limits(
  stages: Stages,
  choice: choosing.Choice,
  rows: Rows,
  before: Int[np.ndarray, ' Q'],
) -> UInt64[np.ndarray, ' Q']:
  """Returns the limits below which queries have exactly `per_query` pairs."""
  per_query = choice.per_query
  candidates = balance.candidate_limits(before, per_query)
  is_frequent = candidates > 0
  limits = np.where(is_frequent, candidates, balance.ALL)
  if not is_frequent.any():
    return limits
  path = stages.path('candidate_limits.npy')
  write_array(candidates, path)
  expected = np.minimum(before, 2 * per_query + 64)[is_frequent].sum()
  choice = dataclasses.replace(
    choice,
    limits=path,
    number_partitions=parts_of(int(expected), _NUMBERS_AT_ONCE),
  )
  written = [
    choosing.ChoiceTask(partition, inputs, stages.path(f'numbers/{i:07}.arrow'))
    for i, (inputs, partition) in enumerate(rows.tasks())
  ]
  function = functools.partial(choosing.write_numbers, choice)
  stages.run('numbers', written, function, 'partitions')
  paths = tuple(task.out for task in written)
  tasks = [
    choosing.ChoiceTask(i, paths, stages.path(f'limits/{i:07}.npy'))
    for i in range(choice.number_partitions)
  ]
  function = functools.partial(choosing.find_limits, choice)
  stages.run('limits', tasks, function, 'partitions')
  for task in tasks:
    names, values = load_array(task.out)
    names = names.astype(np.int64)
    limits[names] = np.minimum(limits[names], values)
  return limits
