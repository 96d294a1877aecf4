"""DIR/results.json: every result with what is known of model, data, machine.

The page and the CSV are made from this alone.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.datasets.published import Published, published
from clip_jax.evaluation.datasets.table import DatasetFacts
from clip_jax.evaluation.suite.plan import Plan
from clip_jax.evaluation.suite.stored import Result, normal

# The paper's tables: (our task, our metric) -> its own name there. Of
# classification it is the data set's own metric.
_PUBLISHED_RETRIEVAL = {
  'image_to_text_r1': 'text_retrieval_r1',
  'text_to_image_r1': 'image_retrieval_r1',
}
_PUBLISHED_TASKS = ('zero_shot', 'linear_probe')


@dataclasses.dataclass(frozen=True)
class Setting:
  """What was asked for, to be shown.

  Attributes:
    model: the reference.
    command: that makes it again.
    seed: of all that is drawn.
    step: of the checkpoint, where that is known.
    published: the model of the paper that this one is said to be, if any.
    root: the folder of data sets.
    overlap_with: training data, if known.
    environment: the machine and the versions of packages.
  """

  model: str
  command: str
  seed: int = 0
  step: int | None = None
  published: str | None = None
  root: str = ''
  overlap_with: str | None = None
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def collect(
  setting: Setting,
  plan: Plan,
  results: Sequence[Result],
  table: Mapping[str, DatasetFacts],
) -> dict[str, Any]:
  """All of it, JSON-able; records of single examples stay in their files."""
  named = {*(pair.dataset for pair in plan.pairs), *plan.absent}
  return normal(
    {
      **dataclasses.asdict(setting),
      'date': datetime.datetime.now().astimezone().isoformat('T', 'seconds'),
      'datasets': {
        name: dataclasses.asdict(facts)
        for name, facts in table.items()
        if name in named
      },
      'results': [_result(setting, result, table) for result in results],
      'conditions': _shared_conditions(results),
      'absent': [
        {'dataset': name, 'reason': reason}
        for name, reason in plan.absent.items()
      ],
    }
  )


def warnings_of(collected: Mapping[str, Any]) -> list[str]:
  """What a user has to see beside the numbers, each line once.

  Args:
    collected: results.json.
  """
  lines = (
    row['warning']
    for result in collected['results']
    for row in result['tables'].get('warnings', [])
  )
  return list(dict.fromkeys(lines))


def headline_metric(
  metrics: Mapping[str, float], metric: str | None
) -> str | None:
  """The name of the number that a classification is judged by.

  Args:
    metrics: of an evaluation.
    metric: of the data set; plain accuracy is called 'top1'.
  """
  for name in (metric, 'top1'):
    if name in metrics:
      return name
  return None


def published_numbers(
  model: str | None,
  dataset: str,
  task: str,
  metrics: Mapping[str, float],
  metric: str | None,
) -> dict[str, Published]:
  """What the paper has for the metrics of a result, by metric.

  Args:
    model: a name of the paper's, or None for a model that is not of it.
    dataset, task, metrics: of the result.
    metric: of the data set.
  """
  if model is None:
    return {}
  if task == 'retrieval':
    asked = _PUBLISHED_RETRIEVAL
  elif task in _PUBLISHED_TASKS:
    name = headline_metric(metrics, metric)
    asked = {name: task} if name else {}
  else:
    return {}
  found = {
    name: published(model, dataset, theirs) for name, theirs in asked.items()
  }
  return {name: value for name, value in found.items() if value is not None}


def _result(
  setting: Setting, result: Result, table: Mapping[str, DatasetFacts]
) -> dict[str, Any]:
  dataset, task = result.pair.dataset, result.pair.task
  numbers = published_numbers(
    setting.published,
    dataset,
    task,
    result.metrics,
    table[dataset].metric,
  )
  return {
    'dataset': dataset,
    'task': task,
    'error': result.error,
    'metrics': result.metrics,
    'chance': result.chance,
    'published': {
      name: dataclasses.asdict(number) for name, number in numbers.items()
    },
    'corrupt': result.corrupt,
    'tables': _tables(result),
    'seconds': result.seconds,
  }


def _tables(result: Result) -> dict[str, list[dict[str, Any]]]:
  """With a picture of the class that was given, beside each confusion."""
  if 'confusions' not in result.tables:
    return result.tables
  of_label: dict[str, str] = {}
  for record in result.records:
    if 'label' in record:
      of_label.setdefault(record['label'], record['id'])
  rows = [
    {**row, 'of_given': of_label.get(row['given'])}
    for row in result.tables['confusions']
  ]
  return {**result.tables, 'confusions': rows}


def _shared_conditions(results: Sequence[Result]) -> dict[str, Any]:
  """What all results depend on: all but their data sets."""
  first = next((result.depends for result in results), {})
  return {name: value for name, value in first.items() if name != 'data'}
