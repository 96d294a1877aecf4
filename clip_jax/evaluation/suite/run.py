"""Runs the plan: each result is stored right away, and no failure stops it."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import Dataset, Split, data_identity
from clip_jax.evaluation.datasets.table import DatasetFacts
from clip_jax.evaluation.suite import stored
from clip_jax.evaluation.suite.plan import Pair
from clip_jax.evaluation.suite.stored import Result
from clip_jax.evaluation.types import Encoder, Evaluator, Options
from clip_jax.parallel import peer_failures
from clip_jax.parallel.distributed import all_processes_agree, is_first_process

# None of these changes a number.
_NOT_CONDITIONS = ('progress', 'cache', 'max_corrupt_records')
_OF_TASKS = ('probe', 'few_shot', 'robustness', 'overlap', 'bias')


@dataclasses.dataclass(frozen=True)
class Suite:
  """A model to evaluate, and everything that its evaluation needs.

  Attributes:
    encoder: the model.
    folder: where results are stored.
    table: data sets by name.
    find: an evaluator by its task.
    open: a data set by its name.
    options: of every evaluator.
    depends: what all results depend on: the model, its arithmetic, versions.
  """

  encoder: Encoder
  folder: Path
  table: Mapping[str, DatasetFacts]
  find: Callable[[str], Evaluator]
  open: Callable[[str], Dataset]
  options: Options
  depends: Mapping[str, Any]

  def conditions(self, pair: Pair, dataset: Dataset | None) -> dict[str, Any]:
    """Returns everything that the numbers of a pair depend on.

    Args:
      dataset: of the pair; None where it could not be opened.
    """
    facts = self.table[pair.dataset]
    reference = self.table.get(facts.shift_of or '')
    options = {
      name: dataclasses.asdict(value) if name in _OF_TASKS else value
      for name, value in vars(self.options).items()
      if name not in _NOT_CONDITIONS
    }
    return {
      **self.depends,
      'data': {
        'rows': [dataclasses.asdict(row) for row in (facts, reference) if row],
        'images': dataset and _identities(dataset),
      },
      'options': options,
    }


# Called with the index of a pair, the number of pairs, the pair, its result
# (None as it begins), and whether the result was stored before.
PairCallback = Callable[[int, int, Pair, Result | None, bool], None]


def run(
  suite: Suite, pairs: Iterable[Pair], callback: PairCallback
) -> list[Result]:
  """Returns the result of every pair, stored or computed.

  A stored result of the same conditions is not computed again. Whatever an
  evaluator or a data set raises becomes the `error` of its results. Of several
  processes, which encode together, process 0 writes; a result that not all of
  them can read is computed again, by all.

  Args:
    pairs: those of one data set together, so that it is opened once.
    callback: is called as a pair begins and as it ends.
  """
  pairs = list(pairs)
  results: list[Result] = []
  for name, group in itertools.groupby(pairs, lambda pair: pair.dataset):
    # Opened also where all is stored: the conditions hold what it is now.
    dataset_or_error = _open(suite, name)
    dataset = None if isinstance(dataset_or_error, str) else dataset_or_error
    for pair in group:
      conditions = suite.conditions(pair, dataset)
      index = len(results)
      result = stored.read(suite.folder, pair, conditions)
      limit = suite.options.max_corrupt_records
      if result is not None and len(result.corrupt) > limit:
        result = None  # under this limit the evaluation has to fail
      # A process that computes would wait forever for one that does not.
      was_stored = all_processes_agree(result is not None)
      if result is None or not was_stored:
        callback(index, len(pairs), pair, None, False)
        result = _evaluate(suite, pair, dataset_or_error, conditions)
        if is_first_process():
          stored.write(suite.folder, result)
      callback(index, len(pairs), pair, result, was_stored)
      results.append(result)
  return results


def _identities(dataset: Dataset) -> dict[str, Any]:
  """Returns the identity of the images of each split, and of its reference."""
  identities: dict[str, Any] = {}
  for name in ('test', 'train', 'validation'):
    split: Split | None = getattr(dataset, name)
    try:
      identities[name] = split and data_identity(split.source)
    except Exception as error:  # an evaluator that reads it fails by itself
      identities[name] = _one_line(error)
  if dataset.reference is not None:
    identities['reference'] = _identities(dataset.reference)
  return identities


def _open(suite: Suite, name: str) -> Dataset | str:
  """Returns a data set, or why it could not be opened."""
  try:
    return suite.open(name)
  except Exception as error:
    return _one_line(error)


def _evaluate(
  suite: Suite,
  pair: Pair,
  dataset_or_error: Dataset | str,
  conditions: dict[str, Any],
) -> Result:
  """Returns the result of a pair, which may be a failure."""
  started = time.monotonic()
  depends = stored.as_json(conditions)
  if isinstance(dataset_or_error, str):
    return Result(pair, depends, error=dataset_or_error)
  try:
    evaluate = suite.find(pair.task)
    evaluation = evaluate(suite.encoder, dataset_or_error, suite.options)
  except Exception as error:
    peer_failures.wait_if_peer_lost(error)
    seconds = time.monotonic() - started
    return Result(pair, depends, error=_one_line(error), seconds=seconds)
  return Result(
    pair,
    depends,
    metrics=stored.as_json(evaluation.metrics),
    records=stored.as_json(evaluation.records),
    corrupt=dict(evaluation.corrupt),
    tables=stored.as_json(evaluation.tables),
    chance=stored.as_json(evaluation.chance),
    seconds=time.monotonic() - started,
  )


def _one_line(error: Exception) -> str:
  """Returns an error in one line, after its type where it is unexpected."""
  text = ' '.join(str(error).split())
  if isinstance(error, UsageError | FailureError):
    return text
  return f'{type(error).__name__}: {text}'
