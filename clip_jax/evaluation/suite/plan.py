"""Chooses the evaluations of each data set, and finds the absent data sets."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from clip_jax.errors import UsageError
from clip_jax.evaluation.datasets.table import DatasetFacts

_PROBES = ('linear_probe', 'few_shot')

# The paper's sections for each kind of data set: 3.1 and 3.2 for those that
# are classified, 3.3 for the shifts, table 13 for retrieval, section 7.
TASKS_OF_GROUP: Mapping[str, tuple[str, ...]] = {
  'paper': ('zero_shot', 'prompt_gain', *_PROBES, 'overlap'),
  'shift': ('zero_shot', 'robustness'),
  'retrieval': ('retrieval',),
  'bias': ('bias',),
}

# Data sets that every machine has; together they use every evaluator, but for
# captioning, which few models can be asked.
TASKS_OF_LOCAL: Mapping[str, tuple[str, ...]] = {
  'emoji': ('zero_shot', 'retrieval', 'overlap'),
  'emoji_skin_tones': ('zero_shot', 'prompt_gain', *_PROBES, 'bias'),
  'emoji_skin_tones_grey': ('zero_shot', 'robustness'),
  'emoji_people': ('zero_shot', 'prompt_gain', *_PROBES),
  'digits': ('zero_shot', 'prompt_gain', *_PROBES),
}

# These need one class an image. The images of VOC2007 have more, so that there
# is no accuracy on those that overlap, and no draw of k examples a class.
_OF_ONE_LABEL = ('few_shot', 'overlap')

# Looks for a data set below the user's folder; returns why it is absent, or
# None where it is present.
Absence = Callable[[DatasetFacts, Path], str | None]


@dataclasses.dataclass(frozen=True)
class Pair:
  """One evaluator on one data set."""

  dataset: str
  task: str

  def __str__(self) -> str:
    return f'{self.dataset} {self.task}'


@dataclasses.dataclass(frozen=True)
class Plan:
  """The evaluations to run.

  Attributes:
    pairs: in order, those of one data set together.
    absent: data set to why it is not on this machine.
  """

  pairs: tuple[Pair, ...]
  absent: Mapping[str, str]


def tasks_of(facts: DatasetFacts) -> tuple[str, ...]:
  """Returns the evaluators that a data set is for."""
  if facts.tasks:
    return facts.tasks
  if facts.name in TASKS_OF_LOCAL:
    return TASKS_OF_LOCAL[facts.name]
  tasks = TASKS_OF_GROUP.get(facts.group, ())
  if facts.target == 'object_labels':
    return tuple(task for task in tasks if task not in _OF_ONE_LABEL)
  return tasks


def make_plan(
  table: Mapping[str, DatasetFacts],
  known_tasks: Collection[str],
  absence: Absence,
  *,
  root: Path,
  training_is_known: bool,
  datasets: Sequence[str] = (),
  tasks: Sequence[str] = (),
) -> Plan:
  """Returns all that can be evaluated on this machine, in the table's order.

  Args:
    table: data sets by name.
    known_tasks: the evaluators that there are.
    absence: why a data set is not here; None where it is.
    root: the user's folder of data sets.
    training_is_known: whether there are training data to look for an overlap
      with; without, `overlap` is left out.
    datasets, tasks: only these; () for all.
  Raises:
    UsageError: a name is unknown, or nothing at all is left to evaluate.
  """
  _check_names('data set', datasets, table)
  _check_names('task', tasks, known_tasks)
  pairs, absent = [], {}
  for name, facts in table.items():
    if datasets and name not in datasets:
      continue
    wanted = [
      task
      for task in tasks_of(facts)
      if task in known_tasks
      and (not tasks or task in tasks)
      and (training_is_known or task != 'overlap')
    ]
    if not wanted:
      continue
    reason = absence(facts, root)
    if reason is None:
      pairs += [Pair(name, task) for task in wanted]
    else:
      absent[name] = reason
  if not pairs:
    why = next(
      (f'{name}: {reason}' for name, reason in absent.items()),
      'these data sets are for other tasks',
    )
    raise UsageError(
      f'nothing to evaluate ({why}); see which data sets are here with '
      'clip-jax eval --list.'
    )
  return Plan(tuple(pairs), absent)


def _check_names(
  what: str, names: Sequence[str], known: Collection[str]
) -> None:
  for name in names:
    if name not in known:
      raise UsageError(
        f'no {what} {name!r} in the suite: choose from {", ".join(known)}.'
      )
