"""Opens a SPEC as a source: random-access records, one small class a scheme.

A record is a dict with
  'id': str, stable, and unique in its source;
  'image': encoded bytes;
  'caption': list of str, empty where the data have none;
  'columns': list of int, for each caption the number of its column among those
    that were asked for, where these are several;
  'label': int, an index into `label_names`, where the data have labels;
  'labels': a list of labels, where an image may have more than one;
  'difficult': a list of labels that are neither right nor wrong for an image.
"""

import contextlib
import importlib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from clip_jax.data.image_formats import (
  HEAD_BYTES,
  PLAIN_SUFFIXES,
  format_of,
)
from clip_jax.data.sources.base import DEFAULT_CAPTIONS, Record, Source
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import expand_path, open_regular

__all__ = [
  'SCHEMES', 'Record', 'Source', 'Spec', 'open_source', 'parse_spec',
  'same_data', 'split_mixture', 'with_scheme',
]  # fmt: skip


class Scheme(NamedTuple):
  """Says how the data sets of a scheme are read.

  Attributes:
    source_class: the name of the class, or of a function that makes one, in the
      scheme's own module of this package, which is imported when it is used.
    is_path: whether locations are paths, whose names may hold a '#'.
    extra: of this package, which installs what the module imports; '' where
      that is always there.
  """

  source_class: str
  is_path: bool
  extra: str = ''


SCHEMES = {
  'tfds': Scheme('TfdsSource', is_path=False),
  'folder': Scheme('FolderSource', is_path=True),
  'csv': Scheme('CsvSource', is_path=True),
  'parquet': Scheme('ParquetSource', is_path=True, extra='parquet'),
  'arrayrecord': Scheme('open_array_records', is_path=True),
  'hf': Scheme('HfSource', is_path=True, extra='parquet'),
  'wds': Scheme('WdsSource', is_path=True),
}


class Spec(NamedTuple):
  """A parsed SPEC.

  Attributes:
    text: the whole SPEC, as messages name it.
    scheme: a key of `SCHEMES`.
    location: a path, or the name of a data set of TFDS.
    split: '' where none is named.
  """

  text: str
  scheme: str
  location: str
  split: str

  def path(self) -> str:
    """Returns the path of the location; a split is a sub-folder of it.

    Raises:
      UsageError: a split of a file is named, or the path is impossible.
    """
    path = expand_path(self.location)
    if not self.split:
      return path
    if os.path.isfile(path):
      raise self.error(f'a file has no splits; leave out #{self.split}')
    return os.path.join(path, self.split)

  def about_split(self) -> str:
    """Returns what a split of shards is, to follow an error, or ''."""
    return f'; #{self.split} names a sub-folder' if self.split else ''

  def error(self, reason: str, line: int | None = None) -> UsageError:
    """Returns the error for data that cannot be read as the SPEC says.

    Args:
      reason: what is wrong, and what would be right.
      line: of the file, from 1, where one is at fault.
    """
    where = '' if line is None else f', line {line}'
    return UsageError(f'data {self.text!r}{where}: {reason}')


def open_source(
  spec: str, *, captions: Sequence[str] = DEFAULT_CAPTIONS
) -> Source:
  """Opens 'scheme:location[#split]'.

  Args:
    spec: such as `tfds:NAME[/CONFIG][#SPLIT]`, `folder:PATH[#SPLIT]`,
      `csv:PATH` or `wds:PATTERN`, with one of `SCHEMES`; a path, a pattern or a
      URL alone is taken for the one that is there.
    captions: the features or columns that hold captions; a record has the texts
      of all of them. Where only the default is asked for and the data have
      labels instead, the label's name is the caption. For a folder, see
      `FolderSource`.
  Raises:
    UsageError: the spec is wrong, or what it names is missing or unreadable.
    FailureError: a folder or a file may not be read.
  """
  parsed = parse_spec(spec)
  scheme = SCHEMES[parsed.scheme]
  try:
    module = importlib.import_module(f'{__name__}.{parsed.scheme}')
  except ImportError as error:
    raise parsed.error(
      f'{parsed.scheme}: needs pip install ".[{scheme.extra}]" ({error})'
    ) from error
  source_class = getattr(module, scheme.source_class)
  try:
    source: Source = source_class(parsed, tuple(captions))
  except UsageError as error:
    if other := _other_scheme(parsed):
      message = f'{str(error).rstrip(".")}; what is there is read as {other}'
      raise UsageError(message) from error
    raise
  if parsed.text != spec:
    notice = f'data {spec!r}: taken for {parsed.text}'
    source.notices = (notice, *source.notices)
  return source


def _other_scheme(spec: Spec) -> str:
  """Returns the SPEC of shards that were given to another scheme, or ''."""
  from clip_jax.data.sources.recognition import scheme_of

  own = ''
  if SCHEMES[spec.scheme].is_path:
    with contextlib.suppress(FailureError, UsageError):
      own = scheme_of(expand_path(spec.location))
  # Any folder may be one of images; hf: reads single Parquet files, too.
  if own in ('', 'folder', spec.scheme) or (spec.scheme, own) == (
    'hf', 'parquet',
  ):  # fmt: skip
    return ''
  return f'{own}:{spec.location}'


def parse_spec(text: str) -> Spec:
  """Parses a SPEC, or the path of a folder or a table.

  Raises:
    UsageError: it is neither.
  """
  full = with_scheme(text)
  scheme, colon, location = full.partition(':')
  if not colon or scheme not in SCHEMES:
    raise UsageError(
      f'data {text!r}: no such folder or table, and no spec, which is '
      f'SCHEME:LOCATION[#SPLIT] with SCHEME one of {", ".join(SCHEMES)}'
    )
  if not location:
    raise UsageError(f'data {text!r}: nothing after {scheme}:')
  split = ''
  if not (SCHEMES[scheme].is_path and _exists(location)) and '#' in location:
    location, _, split = location.rpartition('#')
  return Spec(full, scheme, location, split)


def with_scheme(text: str) -> str:
  """Returns a SPEC for the path of a data set; other texts unchanged.

  What is there tells the scheme; so it is for patterns and URLs.

  Raises:
    UsageError: it is the path of another file.
    FailureError: it is a URL that cannot be read.
  """
  scheme, colon, _ = text.partition(':')
  if (colon and scheme in SCHEMES) or not text or '\0' in text:
    return text
  path = os.path.expanduser(text)
  if not os.path.exists(path) and '#' in path:
    path = path.rpartition('#')[0]
  if not os.path.exists(path) and not re.search(r'[*?\[{]|://', path):
    return text
  from clip_jax.data.sources.recognition import scheme_of

  if own := scheme_of(path):
    return f'{own}:{text}'
  if os.path.isfile(path):
    raise not_a_data_set(text, path)
  return text


def not_a_data_set(text: str, path: str) -> UsageError:
  """Returns the error of a SPEC that names a file which holds no data set.

  Where the file is an image, the error says what a single image is given to.
  """
  is_image = path.lower().endswith(PLAIN_SUFFIXES)
  with contextlib.suppress(FailureError), open_regular(path) as file:
    is_image = is_image or bool(format_of(file.read(HEAD_BYTES)))
  if is_image:
    return UsageError(
      f'data {text!r}: one image, where a data set is read: name its folder, '
      f'as in folder:{os.path.dirname(path) or "."}. One image is for clip-jax '
      'classify or search, or for Model.encode_image in Python.'
    )
  return UsageError(
    f'data {text!r}: a file, where a folder of images (folder:PATH), a table '
    'of them (csv:PATH) or shards (wds:, parquet:, arrayrecord:, hf:) are read'
  )


def split_mixture(text: str) -> list[str]:
  """Returns the SPECs of a mixture, which are joined by '::'."""
  return [spec.strip() for spec in text.split('::')]


def same_data(spec: str, other: str) -> bool:
  """Returns whether two SPECs name one data set, however they are written."""
  return _real_location(spec) == _real_location(other)


def _real_location(spec: str) -> str:
  """Returns a folder's or table's real path; other SPECs stay as they are."""
  spec = spec.strip()
  scheme, colon, location = spec.partition(':')
  if not colon or scheme not in SCHEMES:
    location = spec
  elif not SCHEMES[scheme].is_path:
    return spec
  path = os.path.expanduser(location)
  if not _exists(location):
    path = path.replace('#', '/')  # a split
  return os.path.realpath(path)


def _exists(path: str) -> bool:
  return os.path.exists(os.path.expanduser(path))
