"""The table of `clip-jax eval --list`: the data sets, and which are here."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_jax.commands import printing
from clip_jax.data.built_in import tfds_folder
from clip_jax.evaluation.datasets.names import read_names
from clip_jax.evaluation.datasets.presence import (
  ROOT_VARIABLE,
  data_root,
  fill_root,
  why_absent,
)
from clip_jax.evaluation.datasets.table import DATASETS, DatasetFacts

_TITLES = {
  'paper': 'The data sets of the paper (table 9)',
  'shift': 'Shifts of ImageNet (section 3.3)',
  'retrieval': 'Retrieval (appendix E)',
  'bias': 'Bias probes (section 7)',
  'local': 'On every machine: built on first use',
}
_NUMBERS = ('classes', 'templates', 'train', 'test')
_LINE = '  {name:<22}{title:<32}{classes:>6}{templates:>5} {metric:<15}'
_LINE += '{train:>11}{test:>9}'


def print_list(root: Path | None, as_json: bool) -> None:
  """Prints a table, or with `as_json` a list of objects.

  Args:
    root: the folder of the data sets that TFDS does not prepare; by default
      what CLIP_JAX_DATA says, or ~/clip_data.
  """
  root = root or data_root()
  rows = [_describe(facts, root) for facts in DATASETS.values()]
  if as_json:
    printing.print_json(rows)
    return
  print('\n'.join(_lines(rows, root)))


def _describe(facts: DatasetFacts, root: Path) -> dict[str, Any]:
  """Returns a row for JSON; `uncertain` names what no source confirms."""
  names = read_names(facts.name)
  missing = why_absent(facts, root)
  return {
    'name': facts.name,
    'title': facts.title,
    'group': facts.group,
    'shift_of': facts.shift_of,
    'classes': facts.classes or len(names.classes),
    'templates': len(names.templates),
    'metric': facts.metric,
    'train': facts.sizes[0],
    'test': facts.sizes[1],
    'uncertain': list(facts.uncertain),
    'spec': fill_root(facts.test, root) if facts.test else None,
    'train_spec': fill_root(facts.train, root) if facts.train else None,
    'target': facts.target,
    'note': facts.note,
    'present': missing is None,
    'missing': missing,
  }


def _lines(rows: list[dict[str, Any]], root: Path) -> Iterable[str]:
  yield _LINE.format(
    name='name', title='title', classes='class ', templates='temp ',
    metric='metric', train='train ', test='test',
  )  # fmt: skip
  for group, members in itertools.groupby(rows, lambda row: row['group']):
    yield ''
    yield _TITLES[group]
    for row in members:
      numbers = {key: _number(row, key) for key in _NUMBERS}
      metric = row['metric'] or '-'
      yield _LINE.format(
        name=row['name'], title=row['title'], metric=metric, **numbers
      ).rstrip()
      yield f'    {row["spec"]}: {row["missing"] or "present"}'
  yield ''
  yield '?: the paper and its data do not agree, or no source confirms it.'
  yield f'folders are below --root or {ROOT_VARIABLE}: {root}'
  yield (f'tfds: {tfds_folder()}; `tfds build NAME --file_format=array_record`')
  there = sum(row['present'] for row in rows)
  yield f'{there} of {len(rows)} are present.'


def _number(row: dict[str, Any], key: str) -> str:
  """Returns '10,000 ', marked where uncertain; '-' where there is none."""
  if not row[key]:
    return '- '
  uncertain = key in row['uncertain'] or f'{key}_size' in row['uncertain']
  return f'{row[key]:,}{"?" if uncertain else " "}'
