"""Rows for the figures and tables of the page, from results.json alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.evaluation.suite.collected import headline_metric
from clip_jax.evaluation.suite.spreadsheet import interval_of

Collected = Mapping[str, Any]
Row = dict[str, Any]


def of_task(collected: Collected, task: str) -> Iterator[Row]:
  """The results of a task that did not fail."""
  for result in collected['results']:
    if result['task'] == task and result['error'] is None:
      yield result


def title(collected: Collected, result: Row) -> str:
  """The name of a result's data set, for people."""
  facts = collected['datasets'].get(result['dataset'], {})
  return facts.get('title') or result['dataset']


def own_value(collected: Collected, result: Row) -> float | None:
  """The number that a classification is judged by."""
  name = own_name(collected, result)
  return None if name is None else result['metrics'][name]


def own_name(collected: Collected, result: Row) -> str | None:
  """The name of that number."""
  facts = collected['datasets'].get(result['dataset'], {})
  return headline_metric(result['metrics'], facts.get('metric'))


def prompt_gains(collected: Collected) -> list[Row]:
  """'name', 'value': what prompts add to bare names (figure 4)."""
  return [
    {
      'name': title(collected, result),
      'value': result['metrics']['ensemble_gain'],
    }
    for result in of_task(collected, 'prompt_gain')
  ]


def less_probe(collected: Collected) -> list[Row]:
  """'name', 'value': zero-shot less the linear probe (figure 5)."""
  probes = {x['dataset']: x for x in of_task(collected, 'linear_probe')}
  rows = []
  for result in of_task(collected, 'zero_shot'):
    probe = probes.get(result['dataset'])
    if probe is None:
      continue
    ours, theirs = own_value(collected, result), own_value(collected, probe)
    if ours is not None and theirs is not None:
      rows.append({'name': title(collected, result), 'value': ours - theirs})
  return rows


def few_shot(collected: Collected, start: str = 'zeros') -> list[Row]:
  """'name', 'shots' (0: zero-shot), 'mean', 'low', 'high' (figure 6)."""
  rows = []
  for result in of_task(collected, 'few_shot'):
    name = title(collected, result)
    zero = {'shots': 0, 'low': None, 'high': None}
    rows.append({'name': name, 'mean': result['metrics']['zero_shot'], **zero})
    rows += [
      {'name': name, **{key: row[key] for key in _CURVE}}
      for row in _curve(result, start)
      if not row['full']
    ]
  return rows


def data_efficiency(collected: Collected) -> list[Row]:
  """'name', 'shots', 'bound' ('', '<' or '>'): to match zero-shot (figure 7).

  A bound stands where the curve begins above zero-shot, or never reaches it.
  """
  rows = []
  for result in of_task(collected, 'few_shot'):
    curve = _curve(result, 'zeros')
    if not curve:
      continue
    shots, bound = result['metrics'].get('shots_to_match_zero_shot'), ''
    if shots is None:
      first, last = curve[0], curve[-1]
      above = first['mean'] > result['metrics']['zero_shot']
      shots, bound = (first if above else last)['shots'], '<' if above else '>'
    rows.append(
      {'name': title(collected, result), 'shots': shots, 'bound': bound}
    )
  return rows


def robustness(result: Row) -> tuple[list[Row], Any]:
  """The models of one shift, and the line (figures 13 to 15).

  Returns:
    'name', 'reference', 'shift', 'kind'; and 'slope', 'intercept', 'through',
    or None.
  """
  rows = [
    {
      'name': row['name'],
      'reference': row['reference_accuracy'],
      'shift': row['shift_accuracy'],
      'kind': row['kind'],
    }
    for row in result['tables'].get('models', [])
  ]
  fits = result['tables'].get('fit', [])
  return rows, fits[0] if fits else None


def overlaps(collected: Collected) -> list[Row]:
  """'name', 'share', 'difference', 'low', 'high' (figure 17)."""
  return [
    {
      'name': title(collected, result),
      'share': result['metrics']['overlap_share'],
      'difference': result['metrics']['overlap_minus_clean'],
      'low': result['metrics']['overlap_minus_clean_low'],
      'high': result['metrics']['overlap_minus_clean_high'],
    }
    for result in of_task(collected, 'overlap')
    if 'overlap_minus_clean' in result['metrics']
  ]


def group_rates(result: Row) -> dict[str, list[Row]]:
  """Design to 'group', 'kind', 'rate', 'low', 'high' (tables 6 and 7).

  Designs of a single kind are left out: every rate is 1.
  """
  designs: dict[str, list[Row]] = {}
  for row in result['tables'].get('rates', []):
    designs.setdefault(row['design'], []).append(row)
  return {
    design: rows
    for design, rows in designs.items()
    if len({row['kind'] for row in rows}) > 1
  }


def summary(collected: Collected) -> tuple[list[float | int], list[Row]]:
  """The table of all classified data sets.

  Returns:
    The shots that there are; and for each data set 'title', 'metric',
    'chance', 'zero_shot' with its 'low' and 'high', 'gain', 'shots' (one a
    shot), 'probe', 'examples', 'published_zero_shot', 'published_probe'; None
    where there is no number.
  """
  by_name: dict[str, dict[str, Row]] = {}
  for result in collected['results']:
    if result['error'] is None:
      by_name.setdefault(result['dataset'], {})[result['task']] = result
  shots = sorted({r['shots'] for r in few_shot(collected) if r['shots']})
  rows = [
    _summary_row(collected, tasks, shots)
    for tasks in by_name.values()
    if 'zero_shot' in tasks or 'linear_probe' in tasks or 'few_shot' in tasks
  ]
  return shots, rows


_CURVE = ('shots', 'mean', 'low', 'high')


def _curve(result: Row, start: str) -> list[Row]:
  rows = [x for x in result['tables'].get('curve', []) if x['start'] == start]
  return sorted(rows, key=lambda row: row['shots'])


def _summary_row(
  collected: Collected, tasks: Mapping[str, Row], shots: list[float | int]
) -> Row:
  some = next(iter(tasks.values()))
  row: Row = {'title': title(collected, some), 'examples': None, 'gain': None}
  row['metric'] = row['chance'] = None
  for task, key in (('zero_shot', 'zero_shot'), ('linear_probe', 'probe')):
    result = tasks.get(task)
    name = own_name(collected, result) if result else None
    row[key] = result['metrics'][name] if result and name else None
    row[f'{key}_ends'] = None
    row[f'published_{key}'] = result['published'].get(name) if result else None
    if result and name:
      row['metric'] = row['metric'] or name
      row['chance'] = result['chance'].get(name, row['chance'])
      row['examples'] = result['metrics'].get('examples', row['examples'])
      row[f'{key}_ends'] = interval_of(result['metrics'], name)
  if 'prompt_gain' in tasks:
    row['gain'] = tasks['prompt_gain']['metrics']['ensemble_gain']
  curve = _curve(tasks['few_shot'], 'zeros') if 'few_shot' in tasks else []
  means = {x['shots']: x['mean'] for x in curve if not x['full']}
  row['shots'] = [means.get(k) for k in shots]
  return row
