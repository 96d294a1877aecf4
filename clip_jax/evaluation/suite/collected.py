"""DIR/results.json: all results, with facts of the model, data and machine.

The page and the CSV are made from this alone.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.datasets.published import published
from clip_jax.evaluation.datasets.table import DatasetFacts
from clip_jax.evaluation.suite.plan import Plan
from clip_jax.evaluation.suite.stored import Result, as_json

# Our metric -> its name in the paper's tables. Of classification, the paper
# has the data set's own metric.
_PUBLISHED_RETRIEVAL = {
  'image_to_text_r1': 'text_retrieval_r1',
  'text_to_image_r1': 'image_retrieval_r1',
}
_PUBLISHED_TASKS = ('zero_shot', 'linear_probe')


@dataclasses.dataclass(frozen=True)
class SuiteCall:
  """The call of the suite, as its outputs show it.

  Attributes:
    model: the reference of the model.
    command: the command line that repeats the suite.
    seed: of all random draws.
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
  call: SuiteCall,
  plan: Plan,
  results: Sequence[Result],
  table: Mapping[str, DatasetFacts],
) -> dict[str, Any]:
  """Returns the content of results.json.

  Records of single examples stay in the files of their results.
  """
  named = {*(pair.dataset for pair in plan.pairs), *plan.absent}
  return as_json(
    {
      **dataclasses.asdict(call),
      'date': datetime.datetime.now().astimezone().isoformat('T', 'seconds'),
      'datasets': {
        name: dataclasses.asdict(facts)
        for name, facts in table.items()
        if name in named
      },
      'results': [_result(call, result, table) for result in results],
      'conditions': _shared_conditions(results),
      'absent': [
        {'dataset': name, 'reason': reason}
        for name, reason in plan.absent.items()
      ],
    }
  )


def warnings_of(collected: Mapping[str, Any]) -> list[str]:
  """Returns the warnings of all evaluations, each line once.

  Args:
    collected: the content of results.json.
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
  """Returns the name of the metric that a classification is judged by.

  Args:
    metrics: of an evaluation.
    metric: of the data set; plain accuracy is called 'top1'.
  """
  for name in (metric, 'top1'):
    if name in metrics:
      return name
  return None


def _result(
  call: SuiteCall, result: Result, table: Mapping[str, DatasetFacts]
) -> dict[str, Any]:
  """Returns a result as results.json has it."""
  return {
    'dataset': result.pair.dataset,
    'task': result.pair.task,
    'error': result.error,
    'metrics': result.metrics,
    'chance': result.chance,
    'published': _published(
      call.published, result, table[result.pair.dataset].metric
    ),
    'corrupt': result.corrupt,
    'tables': _tables(result),
    'seconds': result.seconds,
  }


def _published(
  model: str | None, result: Result, metric: str | None
) -> dict[str, dict[str, Any]]:
  """Returns the paper's numbers for the metrics of a result, by metric.

  Args:
    model: a name of the paper's, or None for a model that is not in it.
    result: of any task.
    metric: of the data set.
  """
  dataset, task = result.pair.dataset, result.pair.task
  names: Mapping[str, str] = {}
  if task == 'retrieval':
    names = _PUBLISHED_RETRIEVAL
  elif task in _PUBLISHED_TASKS:
    own = headline_metric(result.metrics, metric)
    names = {own: task} if own else {}
  numbers = {
    name: published(model, dataset, theirs) if model else None
    for name, theirs in names.items()
  }
  return {
    name: dataclasses.asdict(number)
    for name, number in numbers.items()
    if number is not None
  }


def _tables(result: Result) -> dict[str, list[dict[str, Any]]]:
  """Adds to each confusion the id of an image of the class that was given."""
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
  """Returns everything that all results depend on, data sets apart."""
  first = next((result.depends for result in results), {})
  return {name: value for name, value in first.items() if name != 'data'}
