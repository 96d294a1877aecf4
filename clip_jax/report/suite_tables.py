"""The tables of the suite's page, from the content of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.suite.spreadsheet import interval_of
from clip_jax.report.suite_charts import (
  Collected,
  Result,
  headline_metric_of,
  probe_curve,
  results_of,
  title,
)

CONFUSIONS = 8  # shown of a data set
COPIES = 8
RECALLS = tuple(
  f'{way}_r{k}'
  for way in ('image_to_text', 'text_to_image')
  for k in (1, 5, 10)
)

# data set, split ('test' or 'train'), id -> data: URI
Images = Mapping[tuple[str, str, str], str]
Row = dict[str, Any]


def summary(collected: Collected) -> tuple[list[float | int], list[Row]]:
  """Returns the scores of all classified data sets.

  Returns:
    The numbers of examples a class of few-shot probes; and for each data set
    'title', 'metric', 'chance', 'zero_shot' and 'probe', each with its '_ends'
    and its number in the paper, 'gain' of prompts, 'few_shot' (the score with
    each number of examples a class) and 'examples'; None where there is no
    number.
  """
  by_dataset: dict[str, dict[str, Result]] = {}
  for result in collected['results']:
    if result['error'] is None:
      by_dataset.setdefault(result['dataset'], {})[result['task']] = result
  examples_per_class = sorted(
    {
      row['shots']
      for result in results_of(collected, 'few_shot')
      for row in probe_curve(result)
      if not row['full']
    }
  )
  rows = [
    _summary_row(collected, tasks, examples_per_class)
    for tasks in by_dataset.values()
    if tasks.keys() & {'zero_shot', 'linear_probe', 'few_shot'}
  ]
  return examples_per_class, rows


def confusions(collected: Collected, images: Images) -> list[Row]:
  """Returns the names that zero-shot confuses, for each data set."""
  return [
    {
      'title': title(collected, result),
      'rows': [
        {
          **row,
          'image': _image(images, result, 'test', row['examples']),
          'other': _image(images, result, 'test', [row.get('of_given')]),
        }
        for row in shown_confusions(result)
      ],
    }
    for result in results_of(collected, 'zero_shot')
    if shown_confusions(result)
  ]


def copies(collected: Collected, images: Images) -> list[Row]:
  """Returns pairs of test and training images that are near-duplicates."""
  return [
    {
      'title': title(collected, result),
      'rows': [
        {
          **row,
          'image': _image(images, result, 'test', [row['test']]),
          'other': _image(images, result, 'train', [row['train']]),
        }
        for row in shown_copies(result)
      ],
    }
    for result in results_of(collected, 'overlap')
    if shown_copies(result)
  ]


def overlap(collected: Collected) -> list[Row]:
  """Returns the numbers of the overlap with the training data."""
  return [
    {
      'title': title(collected, result),
      'chance': result['chance'].get('accuracy_all'),
      **result['metrics'],
    }
    for result in results_of(collected, 'overlap')
  ]


def retrieval(collected: Collected) -> list[Row]:
  """Returns the recalls, each as (measured, chance, published)."""
  return [
    {
      'title': title(collected, result),
      'values': [
        tuple(
          result[kind].get(name) for kind in ('metrics', 'chance', 'published')
        )
        for name in RECALLS
      ],
      'examples': result['metrics'].get('examples'),
      'texts': result['metrics'].get('texts'),
    }
    for result in results_of(collected, 'retrieval')
  ]


def shown_confusions(result: Result) -> Sequence[Row]:
  """Returns the most frequent confusions of a zero_shot result."""
  return result['tables'].get('confusions', [])[:CONFUSIONS]


def shown_copies(result: Result) -> Sequence[Row]:
  """Returns pairs of an overlap result that count as copies, evenly chosen."""
  pairs = [x for x in result['tables'].get('pairs', []) if x['overlapping']]
  step = max(1, len(pairs) // COPIES)
  return pairs[::step][:COPIES]


def _image(
  images: Images, result: Result, split: str, ids: Sequence[Any]
) -> str | None:
  """Returns the image of the first id, where there is one."""
  return images.get((result['dataset'], split, ids[0])) if ids else None


def _summary_row(
  collected: Collected,
  tasks: Mapping[str, Result],
  examples_per_class: Sequence[float | int],
) -> Row:
  row: Row = {
    'title': title(collected, next(iter(tasks.values()))),
    'metric': None,
    'chance': None,
    'gain': None,
    'examples': None,
  }
  for task, key in (('zero_shot', 'zero_shot'), ('linear_probe', 'probe')):
    result = tasks.get(task)
    name = headline_metric_of(collected, result) if result else None
    row[key] = row[f'{key}_ends'] = row[f'published_{key}'] = None
    if result and name:
      row[key] = result['metrics'][name]
      row[f'{key}_ends'] = interval_of(result['metrics'], name)
      row[f'published_{key}'] = result['published'].get(name)
      row['metric'] = row['metric'] or name
      row['chance'] = result['chance'].get(name, row['chance'])
      row['examples'] = result['metrics'].get('examples', row['examples'])
  if 'prompt_gain' in tasks:
    row['gain'] = tasks['prompt_gain']['metrics']['ensemble_gain']
  curve = probe_curve(tasks['few_shot']) if 'few_shot' in tasks else []
  means = {x['shots']: x['mean'] for x in curve if not x['full']}
  row['few_shot'] = [means.get(k) for k in examples_per_class]
  return row
