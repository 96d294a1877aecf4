"""DIR/results.csv: a row for each metric of each task and data set."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.metrics.intervals import clopper_pearson

COLUMNS = (
  'dataset',
  'task',
  'metric',
  'value',
  'low',
  'high',
  'chance',
  'n',
  'published',
  'published_uncertain',
  'published_where',
)
# Fractions of all examples, each right or wrong: their interval is the exact
# one of 95 %, where the evaluator gives none.
_PROPORTIONS = ('top1', 'top5')
_ENDS = ('_low', '_high')


def to_csv(collected: Mapping[str, Any]) -> str:
  """Returns the numbers of results.json, in the units of the metrics.

  Published percentages become fractions, too. Failures have no rows.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(COLUMNS)
  for result in collected['results']:
    for row in rows_of(result):
      writer.writerow([row[name] for name in COLUMNS])
  return text.getvalue()


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns one row for each metric, with the ends of its interval."""
  metrics = result['metrics']
  n = metrics.get('examples')
  rows = []
  for name, value in metrics.items():
    if _is_end(name, metrics) or name == 'examples':
      continue
    low, high = interval_of(metrics, name)
    number = result['published'].get(name)
    rows.append(
      {
        'dataset': result['dataset'],
        'task': result['task'],
        'metric': name,
        'value': value,
        'low': low,
        'high': high,
        'chance': result['chance'].get(name),
        'n': None if n is None else int(n),
        'published': number and round(number['value'] / 100, 6),
        'published_uncertain': number and number['uncertain'],
        'published_where': number and number['where'],
      }
    )
  return rows


def interval_of(
  metrics: Mapping[str, float], name: str
) -> tuple[float | None, float | None]:
  """Returns the ends of a metric's interval, where it has one."""
  low, high = (metrics.get(f'{name}{end}') for end in _ENDS)
  n = metrics.get('examples')
  if low is None and name in _PROPORTIONS and n:
    exact = clopper_pearson(round(metrics[name] * n), round(n))
    return exact.low, exact.high
  return low, high


def _is_end(name: str, metrics: Mapping[str, float]) -> bool:
  return any(
    name.endswith(end) and name.removesuffix(end) in metrics for end in _ENDS
  )
