"""`tfds:NAME[/CONFIG][#SPLIT]`: what TFDS prepared, without TensorFlow."""

import os
from typing import Any

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources.base import (
  DEFAULT_CAPTIONS,
  Record,
  Source,
  require_columns,
  words,
)
from clip_jax.errors import UsageError


class TfdsSource(Source):
  """A data set prepared by TFDS in a format with random access."""

  def __init__(self, spec: str, location: str, captions: tuple[str, ...]):
    import tensorflow_datasets as tfds

    self.spec = spec
    self._location = location
    self._columns = captions
    name, _, split = location.partition('#')
    self._split = split or 'train'
    builder: Any = _builder(spec, name)
    features: dict[str, Any] = dict(builder.info.features.items())
    if 'image' not in features:
      raise UsageError(
        f'data {self.spec!r}: no feature image; it has {", ".join(features)}'
      )
    label = features.get('label')
    if isinstance(label, tfds.features.ClassLabel):
      self.label_names = tuple(label.names)
    self._has_label = label is not None
    self._has_id = isinstance(features.get('id'), tfds.features.Text)
    self._texts = [name for name in self._columns if name in features]
    if self._columns != DEFAULT_CAPTIONS or self.label_names is None:
      require_columns(self.spec, self._columns, list(features))
    try:
      self._records: Any = builder.as_data_source(
        self._split, decoders={'image': tfds.decode.SkipDecoding()}
      )
    except NotImplementedError as error:
      raise UsageError(
        f'data {self.spec!r}: prepared without random access; prepare it '
        'again with --file_format=array_record'
      ) from error
    except (KeyError, ValueError) as error:
      raise UsageError(
        f'data {self.spec!r}: no split {self._split!r}; it has '
        + ', '.join(builder.info.splits)
      ) from error

  def __len__(self) -> int:
    return len(self._records)

  def id(self, index: int) -> str:
    try:
      if self._has_id:
        return self._records[index]['id'].decode()
    except Exception:
      pass  # A damaged file: the position names the record.
    return f'{self._split}/{index}'

  def captions(self, index: int) -> list[str]:
    try:
      return self[index]['caption']
    except CorruptImageError:
      return []

  def __getitem__(self, index: int) -> Record:
    try:
      data = self._records[index]
    except IndexError:
      raise
    except Exception as error:  # ArrayRecord and protobuf have no common base.
      reason = (str(error) or repr(error)).splitlines()[0]
      raise CorruptImageError(f'damaged record: {reason}') from error
    texts = []
    for name in self._texts:
      value = data[name]
      values = [value] if isinstance(value, bytes | str) else list(value)
      texts += [x.decode() if isinstance(x, bytes) else x for x in values]
    record: Record = {
      'id': data['id'].decode() if self._has_id else f'{self._split}/{index}',
      'image': data['image'],
      'caption': texts,
    }
    if self._has_label:
      record['label'] = int(data['label'])
      if not self._texts and self.label_names:
        record['caption'] = [words(self.label_names[record['label']])]
    return record

  def __reduce__(self):
    # TFDS's reader holds open files; a worker process opens its own.
    return TfdsSource, (self.spec, self._location, self._columns)


def _builder(spec: str, name: str):
  """A prepared data set, read by its own files; `emoji` builds itself."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import constants, read_only_builder

  data_dir = os.environ.get('TFDS_DATA_DIR') or constants.DATA_DIR
  data_dir = os.path.expanduser(data_dir)
  if name == 'emoji':
    from clip_jax.data.emoji import build_emoji

    return tfds.builder_from_directory(build_emoji(data_dir))
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except Exception as error:
    there = os.listdir(data_dir) if os.path.isdir(data_dir) else []
    known = sorted({'emoji', *there} - {'downloads'})
    raise UsageError(
      f'data {spec!r}: {name} is not prepared in {data_dir}; known there: '
      f'{", ".join(known)} (tfds build {name} --file_format=array_record '
      'prepares it)'
    ) from error
