"""Tells the scheme of data that are named by a path alone, by their content."""

import os

from clip_jax.data import storage
from clip_jax.data.image_formats import PLAIN_SUFFIXES
from clip_jax.errors import FailureError, UsageError

_TAR_MARK = (257, b'ustar')  # where it lies in a tar's first header
_MARKS = (
  (b'PAR1', 'parquet'),
  (b'ARROW1', 'hf'),
  (b'\xff\xff\xff\xff', 'hf'),  # an Arrow stream
  (b'\x83\xaf\x70\xd1\x0d\x88\x4a\x3f', 'arrayrecord'),  # Riegeli's
)
# The names of files, of which one tells what a folder is; the first that fits.
_DESCRIPTIONS = (
  (('features.json', 'dataset_info.json'), 'arrayrecord'),
  (('state.json',), 'hf'),
  (('dataset_dict.json',), 'hf'),
)
_INDEX = 'clip_jax_index/'  # which `clip-jax data index` makes
# Parts of the names of files that a folder of shards has.
_SHARDS = (
  ('.tar', 'wds'),
  ('.array_record', 'arrayrecord'),
  ('.parquet', 'parquet'),
  ('.arrow', 'hf'),
)


def scheme_of(path: str) -> str:
  """Returns the scheme of a path, a pattern or a URL; '' for another file.

  A folder without the marks of another scheme is one of images.

  Raises:
    UsageError, FailureError: a URL cannot be read; the message says why.
  """
  try:
    first = storage.expand(path)[0]
    if storage.is_folder(first):
      return _scheme_of_folder(first)
    if first.lower().endswith(('.csv', '.tsv')):
      return 'csv'
    head = storage.read_range(first, 0, 512)
  except (FailureError, UsageError):
    if storage.is_remote(path):
      raise
    return ''
  for mark, scheme in _MARKS:
    if head.startswith(mark):
      return scheme
  start, mark = _TAR_MARK
  is_tar = head[start : start + len(mark)] == mark
  return 'wds' if is_tar or first.lower().endswith('.tar') else ''


def _scheme_of_folder(folder: str) -> str:
  names = storage.list_folder(folder)
  for described_by, scheme in _DESCRIPTIONS:
    if all(name in names for name in described_by):
      return scheme
  files = [name.lower() for name in names if not name.startswith(('.', '_'))]
  if not any(os.path.splitext(name)[1] in PLAIN_SUFFIXES for name in files):
    folders = [name for name in files if name.endswith('/') and name != _INDEX]
    for part, scheme in _SHARDS:
      # img2dataset writes folders of images beside Parquet files about them.
      if any(part in name for name in files) and not folders:
        return scheme
    if 'data/' in folders:
      inside = storage.list_folder(storage.join(folder, 'data'))
      if any(name.endswith('.parquet') for name in inside):
        return 'hf'
  return 'folder'
