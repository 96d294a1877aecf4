"""A SPEC becomes a source: random-access records, one small class a scheme.

A record is a dict with
  'id': str, stable, and unique in its source;
  'image': encoded bytes;
  'caption': list of str, empty where the data have none;
  'label': int, an index into `label_names`, where the data have labels;
  'labels': a list of such, where a picture may have several;
  'difficult': a list of such, where such a picture is asked about some only.
"""

from collections.abc import Sequence

from clip_jax.data.sources.base import DEFAULT_CAPTIONS, Record, Source
from clip_jax.data.sources.csv import CsvSource
from clip_jax.data.sources.folder import FolderSource
from clip_jax.data.sources.tfds import TfdsSource
from clip_jax.errors import UsageError

__all__ = ['Record', 'Source', 'open_source']

SCHEMES = {'tfds': TfdsSource, 'folder': FolderSource, 'csv': CsvSource}


def open_source(
  spec: str, *, captions: Sequence[str] = DEFAULT_CAPTIONS
) -> Source:
  """Opens 'scheme:location[#split]'.

  Args:
    spec: `tfds:NAME[/CONFIG][#SPLIT]`, `folder:PATH` or `csv:PATH`.
    captions: the features (tfds) or columns (csv) that hold captions; a record
      has the texts of all of them. Where only the default is asked for and the
      data have labels instead, the label's name is the caption.
  Raises:
    UsageError: the spec is wrong, or what it names is missing or unreadable.
  """
  scheme, colon, location = spec.partition(':')
  if not colon or scheme not in SCHEMES:
    raise UsageError(
      f'data {spec!r}: a spec is SCHEME:LOCATION[#SPLIT] with SCHEME one of '
      + ', '.join(SCHEMES)
    )
  if not location:
    raise UsageError(f'data {spec!r}: nothing after {scheme}:')
  return SCHEMES[scheme](spec, location, tuple(captions))
