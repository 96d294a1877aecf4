"""Keeps the numbers of rows of many Parquet files, so that opening reads one.

The index is a file of JSON beside the Parquet files. It is believed of files
whose size and time (or checksum, in a bucket) are as they were.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from clip_jax.data import storage
from clip_jax.data.sources import Spec
from clip_jax.data.sources.parquet_footer import read_footer
from clip_jax.data.sources.shard_files import (
  list_files,
  read_each,
  short_names,
)
from clip_jax.errors import FailureError, MissingFileError
from clip_jax.files import check_fields, parse_json

_FOLDER, _NAME = 'clip_jax_index', 'parquet_rows.json'
_MAX_BYTES = 2**28


class RowIndex(NamedTuple):
  """An index of Parquet files: the row counts of their row groups.

  Attributes:
    path: of its file.
    rows: of each row group, by the path of the Parquet file.
    read: how many files were read anew.
    notices: lines about files that are left out.
  """

  path: str
  rows: dict[str, Sequence[int]]
  read: int
  notices: tuple[str, ...]


def row_groups(path: str) -> list[int]:
  """Returns the number of rows of each row group of a Parquet file.

  Raises:
    CorruptImageError: it is no Parquet file, or is damaged.
    FailureError: it is missing, or its store does not answer.
  """
  return [group.rows for group in read_footer(path, storage.version(path))]


def write_row_index(spec: Spec) -> RowIndex:
  """Writes the index of the files of a SPEC; unchanged ones are not read again.

  Raises:
    UsageError: there are none, or none can be read.
    FailureError: the index cannot be written.
  """
  paths = list_files(spec, '.parquet')
  known = read_row_index(paths)
  rows, notices = read_each(
    spec, paths, lambda x: known[x] if x in known else row_groups(x)
  )
  path = _index_path(paths)
  names = dict(zip(paths, short_names(paths), strict=True))
  files = {
    names[x]: {'version': storage.version(x), 'rows': list(groups)}
    for x, groups in rows.items()
  }
  storage.write_bytes(path, json.dumps({'files': files}).encode())
  return RowIndex(path, rows, len(rows.keys() - known.keys()), notices)


def read_row_index(paths: Sequence[str]) -> dict[str, Sequence[int]]:
  """Returns what the index has of some files that are as they were.

  Raises:
    FailureError: there is an index, and it is damaged.
  """
  path = _index_path(paths)
  try:
    data = storage.read_all(path, _MAX_BYTES)
  except MissingFileError:
    return {}
  content = check_fields(path, parse_json(data, path), {'files': dict})
  rows: dict[str, Sequence[int]] = {}
  for own, name in zip(paths, short_names(paths), strict=True):
    entry = content['files'].get(name)
    if entry is None:
      continue
    fields = check_fields(path, entry, {'version': str, 'rows': list})
    counts = fields['rows']
    if not all(isinstance(x, int) and 0 <= x <= 2**40 for x in counts):
      raise FailureError(f'{path}: rows of {name!r} are no numbers.')
    if fields['version'] == storage.version(own):
      rows[own] = counts
  return rows


def _index_path(paths: Sequence[str]) -> str:
  """Returns the index's path, in the folder that all files are in."""
  first, name = paths[0], short_names(paths)[0]
  root = first[: len(first) - len(name)].rstrip('/') or '.'
  return storage.join(root, _FOLDER, _NAME)
