"""Reads `tfds:NAME[/CONFIG][#SPLIT]`: what TFDS prepared, no TensorFlow."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

from clip_jax.data.built_in import BUILT_IN, build, prepared_folder
from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources.base import (
  DEFAULT_CAPTIONS,
  Record,
  Source,
  require_columns,
  words,
)
from clip_jax.errors import UsageError
from clip_jax.files import check_folder


class Answer(TypedDict, total=False):
  """The right answer for an image; see `Record`."""

  label: int
  labels: list[int]
  difficult: list[int]


class Target(NamedTuple):
  """Makes the right answer of features other than `label`.

  Its functions are a module's own, so that a source with one pickles.

  Attributes:
    features: that it reads.
    label_names: from the data set's features by name.
    answer: from a record's values by feature.
  """

  features: tuple[str, ...]
  label_names: Callable[[Mapping[str, Any]], tuple[str, ...]]
  answer: Callable[[Mapping[str, Any]], Answer]


class TfdsSource(Source):
  """A data set prepared by TFDS in a format with random access."""

  def __init__(
    self,
    spec: str,
    location: str,
    captions: tuple[str, ...],
    target: Target | None = None,
  ):
    """Opens one split.

    Args:
      captions: see `open_source`.
      target: None takes the feature `label`, where there is one.
    Raises:
      UsageError: it is not prepared, or lacks a split or feature.
    """
    import tensorflow_datasets as tfds

    self.spec = spec
    self._location = location
    self._columns = captions
    self._target = target
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
    self._has_label = label is not None and target is None
    if target:
      require_columns(self.spec, target.features, list(features))
      self.label_names = target.label_names(features)
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
    try:
      return self._record(index, data)
    except (ValueError, IndexError) as error:  # no UTF-8, a label past all
      raise CorruptImageError(f'damaged record: {error}') from error

  def _record(self, index: int, data: Mapping[str, Any]) -> Record:
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
    if self._target:
      record = {**record, **self._target.answer(data)}
    elif self._has_label:
      record['label'] = int(data['label'])
    if not self._texts and self.label_names:
      labels = record.get('labels', [record.get('label', -1)])
      if any(label >= len(self.label_names) for label in labels):
        raise ValueError('its label has no name')
      record['caption'] = [
        words(self.label_names[label]) for label in labels if label >= 0
      ]
    return record

  def __reduce__(self):
    # TFDS's reader holds open files; a worker process opens its own.
    return (
      TfdsSource, (self.spec, self._location, self._columns, self._target)
    )  # fmt: skip


def _builder(spec: str, name: str):
  """Returns a prepared data set by its own files; some build themselves."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  data_dir = prepared_folder()
  # TFDS would wait for a pipe.
  check_folder(
    os.path.join(data_dir, name.partition('/')[0]), ('.json', '.txt')
  )
  if name in BUILT_IN:
    return tfds.builder_from_directory(build(name, data_dir))
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except Exception as error:
    there = os.listdir(data_dir) if os.path.isdir(data_dir) else []
    known = sorted({*BUILT_IN, *there} - {'downloads'})
    raise UsageError(
      f'data {spec!r}: {name} is not prepared in {data_dir}; known there: '
      f'{", ".join(known)} (tfds build {name} --file_format=array_record '
      'prepares it)'
    ) from error
