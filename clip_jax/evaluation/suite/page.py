"""DIR/report.html: the suite's results on one self-contained page."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.evaluation.suite import figures, panels
from clip_jax.evaluation.suite.collected import warnings_of
from clip_jax.evaluation.suite.pictures import (
  Pictures,
  shown_confusions,
  shown_copies,
)
from clip_jax.pages import environment
from clip_jax.pages.words import percent, small_units

RECALLS = tuple(
  f'{way}_r{k}'
  for way in ('image_to_text', 'text_to_image')
  for k in (1, 5, 10)
)


def render(collected: Mapping[str, Any], pictures: Pictures) -> str:
  """The page.

  Args:
    collected: results.json.
    pictures: see `fetch_pictures`; where one is missing there is a gap.
  """
  shots, summary = figures.summary(collected)
  pages = environment(Path(__file__).parent)
  pages.filters['percent'] = percent
  pages.filters['small_units'] = small_units
  pages.filters['points'] = _points
  return pages.get_template('page.html').render(
    suite=collected,
    date=_date(collected['date']),
    headline=_headline(collected, summary),
    failed=[x for x in collected['results'] if x['error'] is not None],
    warnings=warnings_of(collected),
    shots=shots,
    summary=summary,
    published=collected['published'],
    prompts=panels.prompts(collected),
    probes=panels.probes(collected),
    calibration=panels.calibration(collected),
    robustness=panels.robustness(collected),
    overlap=panels.overlap(collected),
    overlap_rows=_overlap_rows(collected),
    bias=panels.bias(collected),
    bias_notes=_notes(collected, 'bias'),
    confusions=_confusions(collected, pictures),
    copies=_copies(collected, pictures),
    recalls=RECALLS,
    retrieval=_retrieval(collected),
    absent=_absent(collected),
    settings=_settings(collected),
  )


def _headline(
  collected: Mapping[str, Any], summary: list[dict[str, Any]]
) -> list[dict[str, str]]:
  """The numbers at the top: a value, what it is, and a note."""
  results = collected['results']
  failed = sum(x['error'] is not None for x in results)
  absent = len(collected['absent'])
  numbers = [
    {
      'value': f'{len({x["dataset"] for x in results}):,}',
      'name': 'data sets',
      'note': f'{absent} are not on this machine' if absent else 'none missing',
    },
    {
      'value': f'{len(results) - failed:,}',
      'name': 'evaluations',
      'note': f'{failed} failed' if failed else 'none failed',
    },
  ]
  for key, name in (('zero_shot', 'zero-shot'), ('probe', 'linear probe')):
    values = [row[key] for row in summary if row[key] is not None]
    if values:
      numbers.append(
        {
          'value': percent(sum(values) / len(values)),
          'name': f'{name}, mean',
          'note': f'of {len(values)} data set{"s" if len(values) > 1 else ""}',
        }
      )
  return numbers


def _confusions(
  collected: Mapping[str, Any], pictures: Pictures
) -> list[dict[str, Any]]:
  return [
    {
      'title': figures.title(collected, result),
      'rows': [
        {
          **row,
          'picture': _picture(pictures, result, 'test', row['examples']),
          'other': _picture(pictures, result, 'test', [row.get('of_given')]),
        }
        for row in shown_confusions(result)
      ],
    }
    for result in figures.of_task(collected, 'zero_shot')
    if shown_confusions(result)
  ]


def _copies(
  collected: Mapping[str, Any], pictures: Pictures
) -> list[dict[str, Any]]:
  return [
    {
      'title': figures.title(collected, result),
      'rows': [
        {
          **row,
          'picture': _picture(pictures, result, 'test', [row['test']]),
          'other': _picture(pictures, result, 'train', [row['train']]),
        }
        for row in shown_copies(result)
      ],
    }
    for result in figures.of_task(collected, 'overlap')
    if shown_copies(result)
  ]


def _picture(
  pictures: Pictures, result: Mapping[str, Any], split: str, ids: list[Any]
) -> str | None:
  return pictures.get((result['dataset'], split, ids[0])) if ids else None


def _overlap_rows(collected: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [
    {
      'title': figures.title(collected, result),
      'chance': result['chance'].get('accuracy_all'),
      **result['metrics'],
    }
    for result in figures.of_task(collected, 'overlap')
  ]


def _retrieval(collected: Mapping[str, Any]) -> list[dict[str, Any]]:
  return [
    {
      'title': figures.title(collected, result),
      'values': [
        tuple(
          result[kind].get(name) for kind in ('metrics', 'chance', 'published')
        )
        for name in RECALLS
      ],
      'examples': result['metrics'].get('examples'),
      'texts': result['metrics'].get('texts'),
    }
    for result in figures.of_task(collected, 'retrieval')
  ]


def _notes(collected: Mapping[str, Any], task: str) -> list[str]:
  """Each note once."""
  notes = [
    row['note']
    for result in figures.of_task(collected, task)
    for row in result['tables'].get('notes', [])
  ]
  return list(dict.fromkeys(notes))


def _absent(collected: Mapping[str, Any]) -> list[dict[str, Any]]:
  root = collected['root'] or '{root}'
  rows = []
  for absent in collected['absent']:
    facts = collected['datasets'][absent['dataset']]
    specs = [facts[split] for split in ('train', 'validation', 'test')]
    rows.append(
      {
        **absent,
        'title': facts['title'],
        'specs': [spec.replace('{root}', root) for spec in specs if spec],
      }
    )
  return rows


def _settings(collected: Mapping[str, Any]) -> list[tuple[str, str]]:
  found = [
    ('model', collected['model']),
    ('step', collected['step']),
    ('published as', collected['published']),
    ('data sets below', collected['root']),
    ('training data', collected['overlap_with']),
  ]
  conditions = collected['conditions']
  found.append(('dtype', conditions.get('model', {}).get('dtype')))
  found += conditions.get('options', {}).items()
  return [
    (name, _words(value))
    for name, value in found
    if value not in (None, '', [])
  ]


def _words(value: Any) -> str:
  if isinstance(value, list):
    return ', '.join(map(str, value))
  return str(value)


def _points(value: float) -> str:
  """'+1.2', with a minus sign as long as a plus."""
  return f'{100 * value:+.1f}'.replace('-', '\N{MINUS SIGN}')


def _date(iso: str) -> str:
  return datetime.datetime.fromisoformat(iso).strftime('%-d %B %Y')
