"""Finds the data sets on this machine without opening them."""

import os
from pathlib import Path

from clip_jax.data.built_in import BUILT_IN, tfds_folder
from clip_jax.data.sources import parse_spec
from clip_jax.errors import FailureError
from clip_jax.evaluation.datasets.table import DatasetFacts
from clip_jax.files import read_json, typed_path

ROOT_VARIABLE = 'CLIP_JAX_DATA'


def data_root() -> Path:
  """Returns the folder of the data sets that TFDS does not prepare."""
  return typed_path(os.environ.get(ROOT_VARIABLE) or '~/clip_data')


def fill_root(spec: str, root: Path) -> str:
  """Returns a SPEC of the table with the user's folder for `{root}`."""
  return spec.replace('{root}', str(typed_path(root)))


def why_absent(facts: DatasetFacts, root: Path | None = None) -> str | None:
  """Returns why a data set cannot be evaluated here; None where it can.

  Looks for folders and reads what TFDS says of itself, nothing more; a probe
  may still find its training split missing.

  Args:
    facts: a row of the table.
    root: replaces `{root}`; by default `data_root`.
  Returns:
    A few words for a table, such as 'no such folder'.
  """
  if facts.test is None:
    return 'no test split'
  spec = parse_spec(fill_root(facts.test, root or data_root()))
  if spec.scheme == 'tfds':
    return _not_prepared(spec.location, spec.split.partition('[')[0])
  path = spec.path()
  if spec.scheme == 'csv':
    return None if os.path.isfile(path) else 'no such file'
  if not os.path.isdir(path):
    return 'no such folder'
  with os.scandir(path) as entries:
    return None if any(entries) else 'an empty folder'


def _not_prepared(name: str, split: str) -> str | None:
  """Returns why TFDS cannot read a data set, or None."""
  if name in BUILT_IN:
    return None  # on first use
  folder = Path(tfds_folder()) / name
  # A data set with a default configuration may be named without it.
  infos = [*folder.glob('*/dataset_info.json')]
  infos = infos or [*folder.glob('*/*/dataset_info.json')]
  if not infos:
    return 'not prepared'
  reasons = [_unreadable(path, split) for path in infos]
  return None if None in reasons else reasons[-1]


def _unreadable(path: Path, split: str) -> str | None:
  """Returns why one version of a data set is of no use, or None."""
  try:
    info = read_json(path)
    splits = [row['name'] for row in info['splits']]
  except (FailureError, KeyError, TypeError):
    return f'{path.name} is damaged'
  if info.get('fileFormat') != 'array_record':
    return f'prepared as {info.get("fileFormat")}, not as array_record'
  if split not in splits:
    return f'no split {split}; it has {", ".join(splits)}'
  return None
