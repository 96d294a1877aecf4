"""Opens a SPEC as a source: random-access records, one small class a scheme.

A record is a dict with
  'id': str, stable, and unique in its source;
  'image': encoded bytes;
  'caption': list of str, empty where the data have none;
  'label': int, an index into `label_names`, where the data have labels;
  'labels': a list of such, where an image may have several;
  'difficult': a list of such, which are neither right nor wrong for an image.
"""

import importlib
import os
from collections.abc import Sequence

from clip_jax.data.sources.base import DEFAULT_CAPTIONS, Record, Source
from clip_jax.errors import UsageError

__all__ = ['Record', 'Source', 'open_source', 'same_data', 'spec_of']

# The module of each scheme, which is imported when it is used, and its class.
SCHEMES = {
  'tfds': 'TfdsSource',
  'folder': 'FolderSource',
  'csv': 'CsvSource',
}


def open_source(
  spec: str, *, captions: Sequence[str] = DEFAULT_CAPTIONS
) -> Source:
  """Opens 'scheme:location[#split]'.

  Args:
    spec: `tfds:NAME[/CONFIG][#SPLIT]`, `folder:PATH[#SPLIT]` or `csv:PATH`; the
      path of a folder or of a table is taken for such a spec.
    captions: the features (tfds) or columns (csv) that hold captions; a record
      has the texts of all of them. Where only the default is asked for and the
      data have labels instead, the label's name is the caption. Of a folder
      see `FolderSource`.
  Raises:
    UsageError: the spec is wrong, or what it names is missing or unreadable.
    FailureError: a folder or a file may not be read.
  """
  understood = spec_of(spec)
  scheme, colon, location = understood.partition(':')
  if not colon or scheme not in SCHEMES:
    raise UsageError(
      f'data {spec!r}: no such folder or table, and no spec, which is '
      f'SCHEME:LOCATION[#SPLIT] with SCHEME one of {", ".join(SCHEMES)}'
    )
  if not location:
    raise UsageError(f'data {spec!r}: nothing after {scheme}:')
  module = importlib.import_module(f'{__name__}.{scheme}')
  source_class = getattr(module, SCHEMES[scheme])
  source: Source = source_class(understood, location, tuple(captions))
  if understood != spec:
    source.notices = (f'data {spec!r}: taken for {understood}', *source.notices)
  return source


def same_data(spec: str, other: str) -> bool:
  """Tells whether two specs name one data set, however they are written."""
  return _real_location(spec) == _real_location(other)


def _real_location(spec: str) -> str:
  """Returns a folder's or table's real path; other specs stay as they are."""
  scheme, colon, location = spec.strip().partition(':')
  if not colon or scheme not in SCHEMES:
    location = spec.strip()
  elif scheme not in ('folder', 'csv'):
    return spec.strip()
  path = os.path.expanduser(location)
  if not os.path.exists(path):
    path = path.replace('#', '/')  # a split
  return os.path.realpath(path)


def spec_of(spec: str) -> str:
  """Returns a spec, where that may also be the path of a folder or a table.

  What is neither is returned as it is.

  Raises:
    UsageError: the path is that of another file.
  """
  scheme, colon, _ = spec.partition(':')
  if (colon and scheme in SCHEMES) or not spec or '\0' in spec:
    return spec
  path = os.path.expanduser(spec)
  if not os.path.exists(path):
    path = os.path.expanduser(spec.rpartition('#')[0])
  if os.path.isdir(path):
    return f'folder:{spec}'
  if not os.path.exists(path):
    return spec
  if path.lower().endswith(('.csv', '.tsv')):
    return f'csv:{spec}'
  raise UsageError(
    f'data {spec!r}: a file, where a folder of images (folder:PATH) or a table '
    'of them (csv:PATH) is read'
  )
