"""The page of a curation: its funnel, its queries, and samples of pairs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from clip_jax.report import page
from clip_jax.report.charts import (
  ACCENT,
  SECOND,
  SOFT,
  Chart,
  add_legend,
  label_bar,
  new_axes,
  new_bars,
  to_svg,
)
from clip_jax.report.page import percent, short_count

_REASONS = 12  # of a step, in the table
_SAMPLED = 3  # reasons of a step that have samples, the most frequent


def write_page(
  path: str | os.PathLike, result: Mapping[str, Any], name: str
) -> None:
  """Writes the page of a curation.

  Args:
    path: where the page is written, as a whole.
    result: of `clip_jax.data.curation.pipeline.curate`.
    name: of the collection.
  Raises:
    FailureError: the page cannot be written.
  """
  queries = result['queries']
  charts = [_funnel_chart(result['steps'])]
  if queries.get('matched'):
    charts += [_rank_chart(queries), _tail_chart(queries)]
  page.write(
    path,
    'curation.html',
    name=name,
    date=page.long_date(),
    headline=_headline(result),
    charts=charts,
    steps=[_step_row(step) for step in result['steps']],
    queries=queries,
    samples=_samples(result['steps']),
    settings=_settings(result['settings']),
  )


def _headline(result: Mapping[str, Any]) -> list[dict[str, str]]:
  rows_in, rows_out = result['rows_in'], result['rows_out']
  numbers = [
    {
      'name': 'pairs read',
      'value': short_count(rows_in),
      'note': f'{rows_in:,}',
    },
    {
      'name': 'pairs kept',
      'value': short_count(rows_out),
      'note': f'{rows_out:,}, {percent(rows_out / max(rows_in, 1))}',
    },
  ]
  queries = result['queries']
  if queries.get('total'):
    matched, total = queries['matched'], queries['total']
    numbers += [
      {
        'name': 'queries with pairs',
        'value': short_count(matched),
        'note': f'of {total:,}',
      },
      {
        'name': 'queries at the limit',
        'value': short_count(queries['frequent']),
        'note': f'over {queries["per_query"]:,} pairs',
      },
    ]
  return numbers


def _funnel_chart(steps: Sequence[Mapping[str, Any]]) -> Chart:
  names = [step['step'] for step in steps]
  figure, axes = new_bars(names)
  most = max([step['in'] for step in steps] or [1]) or 1
  for bar, step in enumerate(steps):
    axes.barh(bar, step['in'], color=SOFT, alpha=0.3, height=0.7)
    axes.barh(bar, step['out'], color=ACCENT, height=0.7)
    label_bar(axes, float(step['in']), bar, f'{step["out"]:,}', True)
  axes.set_xlim(0, 1.35 * most)
  axes.xaxis.set_major_formatter(
    FuncFormatter(lambda x, _: short_count(int(x)))
  )
  return Chart(
    'The funnel',
    'pairs',
    to_svg(figure, 'funnel', 'Pairs that each step keeps'),
    'Grey: what a step drops. The number is what it keeps.',
  )


def _rank_chart(queries: Mapping[str, Any]) -> Chart:
  curves = queries['curves']
  figure, axes = new_axes()
  axes.loglog(curves['rank'], curves['before'], color=SECOND, label='before')
  axes.loglog(
    curves['rank'],
    np.maximum(curves['chosen'], 0.5),
    color=ACCENT,
    label='chosen',
  )
  axes.set_xlabel('query, by its number of pairs')
  axes.set_ylabel('pairs')
  add_legend(axes)
  return Chart(
    'Pairs of each query',
    'before and after balancing',
    to_svg(figure, 'ranks', 'Pairs of the queries, by rank'),
    'The head on the left is cut at the limit; the tail on the right stays.',
  )


def _tail_chart(queries: Mapping[str, Any]) -> Chart:
  sums = queries['sums']
  figure, axes = new_axes()
  for name, color in (('before', SECOND), ('chosen', ACCENT)):
    axes.plot(sums['fraction'], sums[name], color=color, label=name)
  axes.set_xlabel('fraction of the queries, from the tail on')
  axes.set_ylabel('matches, cumulative')
  axes.yaxis.set_major_formatter(
    FuncFormatter(lambda y, _: short_count(int(y)))
  )
  add_legend(axes)
  return Chart(
    'Matches from tail to head',
    'as MetaCLIP, figure 2',
    to_svg(figure, 'sums', 'Cumulative matches from the tail to the head'),
    'A straight line would be a collection with as many pairs for each query.',
  )


def _step_row(step: Mapping[str, Any]) -> dict[str, Any]:
  dropped = sorted(
    ((reason, count) for reason, count in step['dropped'].items() if count),
    key=lambda item: -item[1],
  )
  return {
    'name': step['step'],
    'in': step['in'],
    'out': step['out'],
    'reasons': dropped[:_REASONS],
    'rest': sum(count for _, count in dropped[_REASONS:]),
  }


def _samples(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns samples of what was kept, and of the frequent reasons of steps."""
  groups = []
  for step in steps:
    reasons = sorted(
      step['samples'], key=lambda name: -step['dropped'].get(name, 0)
    )
    for reason in [x for x in reasons if x != 'kept'][:_SAMPLED]:
      title = f'{step["step"]}: {reason}'
      groups.append({'title': title, 'rows': step['samples'][reason]})
  kept = steps[-1]['samples'].get('kept') if steps else None
  if kept:
    groups.insert(0, {'title': 'kept', 'rows': kept})
  return groups


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the names and values of what was asked for."""
  rows = []
  for name, value in settings.items():
    if name in ('schema', 'files', 'inputs', 'evaluation_content'):
      continue
    if isinstance(value, Mapping):
      rows += [(f'{name}.{x}', y) for x, y in value.items()]
    else:
      rows.append((name, value))
  return [
    (name, ', '.join(map(str, x)) if isinstance(x, list) else str(x))
    for name, x in rows
    if x not in (None, '', [], {}, 0)
  ]
