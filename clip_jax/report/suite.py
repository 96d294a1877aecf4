"""DIR/report.html of `eval --suite`: all results on one self-contained page."""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from clip_jax.data.sources import Source, open_source
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.suite.collected import warnings_of
from clip_jax.report import page, suite_charts, suite_tables
from clip_jax.report.images import data_uris
from clip_jax.report.suite_charts import Collected, results_of
from clip_jax.report.suite_tables import (
  Images,
  shown_confusions,
  shown_copies,
)


def write_page(
  path: str | os.PathLike,
  collected: Collected,
  open_dataset: Callable[[str], Dataset],
) -> None:
  """Writes the page, as a whole.

  Args:
    path: of the page.
    collected: the content of results.json.
    open_dataset: opens a data set by its name, for the images of confusions.
  Raises:
    FailureError: the page cannot be written.
  """
  images = fetch_images(collected, open_dataset)
  page.write(path, 'suite.html', **_sections(collected, images))


def render(collected: Collected, images: Images) -> str:
  """Returns the page.

  Args:
    collected: the content of results.json.
    images: see `fetch_images`; where one is missing there is a gap.
  """
  return page.render('suite.html', **_sections(collected, images))


def fetch_images(
  collected: Collected, open_dataset: Callable[[str], Dataset]
) -> Images:
  """Returns the images that the page shows: of confusions, and of copies.

  Images that cannot be opened or read any more are left out.
  """
  images: dict[tuple[str, str, str], str] = {}
  for name, split, ids in _shown_ids(collected):
    try:
      source = _source(open_dataset(name), split, collected)
    except (UsageError, FailureError, OSError):
      continue
    if source is not None:
      uris = data_uris(source, ids)
      images |= {(name, split, key): uri for key, uri in uris.items()}
  return images


def _sections(collected: Collected, images: Images) -> dict[str, Any]:
  """Returns the values of the template."""
  examples_per_class, summary = suite_tables.summary(collected)
  return {
    'suite': collected,
    'date': page.long_date(datetime.datetime.fromisoformat(collected['date'])),
    'headline': _headline(collected, summary),
    'failed': [x for x in collected['results'] if x['error'] is not None],
    'warnings': warnings_of(collected),
    'examples_per_class': examples_per_class,
    'summary': summary,
    'published': collected['published'],
    'prompts': suite_charts.prompt_charts(collected),
    'probes': suite_charts.probe_charts(collected),
    'calibration': suite_charts.calibration_charts(collected),
    'robustness': suite_charts.robustness_charts(collected),
    'overlap': suite_charts.overlap_charts(collected),
    'overlap_rows': suite_tables.overlap(collected),
    'bias': suite_charts.bias_charts(collected),
    'bias_notes': _bias_notes(collected),
    'confusions': suite_tables.confusions(collected, images),
    'copies': suite_tables.copies(collected, images),
    'recalls': suite_tables.RECALLS,
    'retrieval': suite_tables.retrieval(collected),
    'absent': _absent(collected),
    'settings': _settings(collected),
  }


def _headline(
  collected: Collected, summary: Iterable[Mapping[str, Any]]
) -> list[dict[str, str]]:
  """Returns the numbers at the top, each with its name and a note."""
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
          'value': page.percent(sum(values) / len(values)),
          'name': f'{name}, mean',
          'note': f'of {len(values)} data set{"s" if len(values) > 1 else ""}',
        }
      )
  return numbers


def _bias_notes(collected: Collected) -> list[str]:
  """Returns each note of the bias evaluations once."""
  notes = (
    row['note']
    for result in results_of(collected, 'bias')
    for row in result['tables'].get('notes', [])
  )
  return list(dict.fromkeys(notes))


def _absent(collected: Collected) -> list[dict[str, Any]]:
  """Returns the data sets that are missing, and where they are looked for."""
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


def _settings(collected: Collected) -> list[tuple[str, str]]:
  """Returns the names and values of what all evaluations depend on."""
  conditions = collected['conditions']
  settings = {
    'model': collected['model'],
    'step': collected['step'],
    'published as': collected['published'],
    'data sets below': collected['root'],
    'training data': collected['overlap_with'],
    'dtype': conditions.get('model', {}).get('dtype'),
  }
  for name, value in conditions.get('options', {}).items():
    # Options of one task are a dict of their own.
    if isinstance(value, dict):
      settings |= {f'{name}.{key}': x for key, x in value.items()}
    else:
      settings[name] = value
  return [
    (name, ', '.join(map(str, x)) if isinstance(x, list) else str(x))
    for name, x in settings.items()
    if x not in (None, '', [])
  ]


def _shown_ids(collected: Collected) -> Iterator[tuple[str, str, list[str]]]:
  """Yields data sets and splits with the ids of their images on the page."""
  for result in results_of(collected, 'zero_shot'):
    rows = shown_confusions(result)
    ids = [row['examples'][0] for row in rows if row['examples']]
    ids += [row['of_given'] for row in rows if row.get('of_given')]
    if ids:
      yield result['dataset'], 'test', ids
  for result in results_of(collected, 'overlap'):
    rows = shown_copies(result)
    if rows:
      yield result['dataset'], 'test', [row['test'] for row in rows]
      yield result['dataset'], 'train', [row['train'] for row in rows]


def _source(
  dataset: Dataset, split: str, collected: Collected
) -> Source | None:
  """Returns the images of a split, or the training data of the model."""
  if split == 'test':
    return dataset.test.source
  if collected['overlap_with']:
    return open_source(collected['overlap_with'])
  return dataset.train.source if dataset.train else None
