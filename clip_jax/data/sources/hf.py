"""Reads `hf:DIR[#SPLIT]`: a directory of a Hugging Face data set.

What `save_to_disk` writes (Arrow files beside state.json, and one folder a
split for a DatasetDict), a cache of Arrow files, or Parquet files as the hub
has them (data/train-00000-of-00002.parquet). Names of labels come from the
metadata; `datasets` is not needed.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from clip_jax.data import storage
from clip_jax.data.sources import Spec
from clip_jax.data.sources.arrow_columns import find_columns
from clip_jax.data.sources.arrow_files import ArrowFiles
from clip_jax.data.sources.columnar import (
  ColumnarSource,
)
from clip_jax.data.sources.parquet import ParquetFiles, large_groups
from clip_jax.data.sources.shard_files import (
  files_below,
  short_names,
  split_of,
)
from clip_jax.errors import (
  FailureError,
  MissingFileError,
  UsageError,
  first_few,
  plural,
  quote_first,
)
from clip_jax.files import MAX_TEXT_BYTES, check_fields, parse_json


class HfSource(ColumnarSource):
  """Records of a Hugging Face data set on a disk or in a bucket."""

  def __init__(self, spec: Spec, captions: tuple[str, ...]):
    """Opens one split: 'train', or the only one, where the SPEC names none.

    Files that are named themselves, or by a pattern, are all read where the
    SPEC names no split.

    Args:
      captions: see `open_source`; without any, `caption` or `text`.
    Raises:
      UsageError: it is no such directory, or lacks the split or a column.
    """
    paths, features, notices = _data_files(spec)
    try:
      is_parquet = storage.read_range(paths[0], 0, 4) == b'PAR1'
    except MissingFileError as error:
      raise spec.error(str(error).rstrip('.')) from error
    files = (ParquetFiles if is_parquet else ArrowFiles)(spec, paths)
    columns = find_columns(spec, files.schema, captions, features)
    super().__init__(spec, files, columns)
    self.notices += (*notices, *_folders_together(spec, files.paths))
    if isinstance(files, ParquetFiles):
      self.notices += large_groups(spec, files, columns.image)


class _DataFiles(NamedTuple):
  """The files of a split.

  Attributes:
    paths: of the files.
    features: that lie beside them; None where there are none.
    notices: lines about files that are left out.
  """

  paths: list[str]
  features: Mapping[str, Any] | None
  notices: tuple[str, ...] = ()


def _data_files(spec: Spec) -> _DataFiles:
  """Returns the files of the split that a SPEC names."""
  try:
    paths = storage.expand(spec.location)
  except UsageError as error:
    raise spec.error(str(error).rstrip('.')) from error
  folder = paths[0].rstrip('/') or '/'
  if not storage.is_folder(folder):
    features = _features(storage.folder_of(folder))
    if not spec.split:
      return _DataFiles(paths, features)
    return _of_split(
      spec, dict(zip(paths, short_names(paths), strict=True)), features
    )
  if len(paths) > 1:
    raise spec.error(
      f'{len(paths)} paths match, and one folder is read at a time: name one, '
      f'such as hf:{folder}, or files in them, as in {spec.location}/*.parquet'
    )
  names = storage.list_folder(folder)
  if 'state.json' in names:
    if spec.split:
      raise spec.error('one split was saved here; leave out the #')
    return _DataFiles(_saved_files(spec, folder), _features(folder))
  if 'dataset_dict.json' in names:
    content = _read_json(storage.join(folder, 'dataset_dict.json'))
    splits = content.get('splits')
    if not isinstance(splits, list) or not splits:
      raise spec.error(f'{folder}/dataset_dict.json names no splits')
    split = _choose(spec, [str(x) for x in splits])
    if '/' in split or split in ('.', '..'):
      raise spec.error(f'{split!r} is no name of a split')
    own = storage.join(folder, split)
    return _DataFiles(_saved_files(spec, own), _features(own))
  paths = files_below(folder, '.arrow') or files_below(folder, '.parquet')
  if not paths:
    raise spec.error(
      f'{folder} has no state.json, .arrow or .parquet file: name the folder '
      'that save_to_disk wrote, or that was downloaded from the hub'
    )
  names_below = {path: path[len(folder) :] for path in paths}
  return _of_split(spec, names_below, _features(folder))


def _of_split(
  spec: Spec, names: Mapping[str, str], features: Mapping[str, Any] | None
) -> _DataFiles:
  """Returns the files of a split, which their names or folders say.

  Args:
    names: of the files and the folders in which they differ, by path.
  """
  splits: dict[str, list[str]] = {}
  for path, name in names.items():
    splits.setdefault(split_of(name, spec.split), []).append(path)
  unnamed = splits.pop('', [])
  if not splits and not spec.split:
    return _DataFiles(unnamed, features)
  paths = splits[_choose(spec, list(splits))]
  if not unnamed:
    return _DataFiles(paths, features)
  quoted = quote_first((names[x].lstrip('/') for x in unnamed), len(unnamed))
  notice = (
    f'data {spec.text!r}: {plural(len(unnamed), "file")} whose names tell no '
    f'split left out ({quoted})'
  )
  return _DataFiles(paths, features, (notice,))


def _folders_together(spec: Spec, paths: list[str]) -> tuple[str, ...]:
  """Returns a line where a split's files lie in more folders than one.

  These may be the configurations of a data set, such as its languages.
  """
  names = [x.partition('/') for x in short_names(paths)]
  folders = sorted({folder for folder, slash, _ in names if slash})
  if len(folders) < 2:
    return ()
  split = f'#{spec.split}' if spec.split else ''
  one = f'hf:{storage.join(spec.location, folders[0])}{split}'
  return (
    f'data {spec.text!r}: its files lie in {len(folders)} folders, '
    f'{first_few(folders)}, which are read together; {one} is one of them',
  )


def _choose(spec: Spec, splits: list[str]) -> str:
  if spec.split in splits:
    return spec.split
  if not spec.split and 'train' in splits:
    return 'train'
  if not spec.split and len(splits) == 1:
    return splits[0]
  what = f'no split {spec.split!r}' if spec.split else 'name a split, as #test'
  raise spec.error(f'{what}; it has {", ".join(splits) or "none"}')


def _saved_files(spec: Spec, folder: str) -> list[str]:
  """Returns the files that `save_to_disk` wrote, in order."""
  where = storage.join(folder, 'state.json')
  content = check_fields(where, _read_json(where), {'_data_files': list})
  if content.get('_indices_data_files') or content.get('_indices_files'):
    raise spec.error(
      f'{folder} has its records in another order than its files: call '
      'flatten_indices() before save_to_disk()'
    )
  names = [
    x.get('filename') if isinstance(x, dict) else None
    for x in content['_data_files']
  ]
  for name in names:
    if not isinstance(name, str) or not re.fullmatch(r'[^/\0]+', name):
      raise spec.error(f'{where} names the file {name!r}, which is none here')
  if not names:
    raise spec.error(f'{where} names no files')
  return [storage.join(folder, str(name)) for name in names]


def _features(folder: str) -> Mapping[str, Any] | None:
  """Returns the features in dataset_info.json, or None without such a file."""
  path = storage.join(folder, 'dataset_info.json')
  try:
    features = _read_json(path).get('features')
  except MissingFileError:
    return None
  return features if isinstance(features, Mapping) else None


def _read_json(path: str) -> dict[str, Any]:
  content = parse_json(storage.read_all(path, MAX_TEXT_BYTES), path)
  if not isinstance(content, dict):
    raise FailureError(f'{path} holds no JSON object.')
  return content
