"""Reads `tfds:NAME[/CONFIG][#SPLIT]`, data of TFDS, without TensorFlow."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

from clip_jax.data.built_in import BUILT_IN, build, tfds_folder
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Spec
from clip_jax.data.sources.base import Record, Source
from clip_jax.data.sources.columns import (
  caption_columns,
  captions_of,
  label_captions,
  numbered_texts,
  require_columns,
)
from clip_jax.errors import FailureError
from clip_jax.files import check_folder


class Labels(TypedDict, total=False):
  """The fields of a `Record` that say what its image shows."""

  label: int
  labels: list[int]
  difficult: list[int]


class Target(NamedTuple):
  """Derives labels from features other than `label`.

  Its functions are defined in modules, so that a source with one pickles.

  Attributes:
    features: the names of the features that it reads.
    label_names: the names of the labels, from the data set's features by name.
    labels: a record's labels, from its values by feature.
  """

  features: tuple[str, ...]
  label_names: Callable[[Mapping[str, Any]], tuple[str, ...]]
  labels: Callable[[Mapping[str, Any]], Labels]


class TfdsSource(Source):
  """A data set that TFDS wrote in a format with random access."""

  def __init__(
    self,
    spec: Spec,
    captions: tuple[str, ...],
    target: Target | None = None,
  ):
    """Opens one split, 'train' where the SPEC names none.

    Args:
      captions: see `open_source`.
      target: makes the labels; None takes the feature `label`, if there is one.
    Raises:
      UsageError: TFDS has not prepared the data set, or it lacks the split or a
        feature.
    """
    import tensorflow_datasets as tfds

    self.spec = spec.text
    self._arguments = spec, captions, target
    self._target = target
    self._split = spec.split or 'train'
    builder: Any = self._open(spec)
    features: dict[str, Any] = dict(builder.info.features.items())
    require_columns(spec, ['image'], features)
    label = features.get('label')
    if isinstance(label, tfds.features.ClassLabel):
      self.label_names = tuple(label.names)
    self._has_label = label is not None and target is None
    if target:
      require_columns(spec, target.features, features)
      self.label_names = target.label_names(features)
    self._has_id = isinstance(features.get('id'), tfds.features.Text)
    self._captions = caption_columns(
      spec, captions, features, labelled=self.label_names is not None
    )
    try:
      self._records: Any = self._read(builder, tfds.decode.SkipDecoding())
    except NotImplementedError as error:
      raise spec.error(
        'prepared without random access; prepare it again with '
        '--file_format=array_record'
      ) from error
    except (KeyError, ValueError) as error:
      splits = ', '.join(builder.info.splits)
      raise spec.error(f'no split {self._split!r}; it has {splits}') from error

  def _open(self, spec: Spec) -> Any:
    """Returns the TFDS builder of the data set."""
    return _builder(spec)

  def _read(self, builder: Any, as_bytes: Any) -> Any:
    """Returns the split's records, with the images as they are encoded."""
    return builder.as_data_source(self._split, decoders={'image': as_bytes})

  def __len__(self) -> int:
    return len(self._records)

  def id(self, index: int) -> str:
    try:
      if self._has_id:
        return self._records[index]['id'].decode()
    except Exception:
      pass  # A damaged file: the position names the record.
    return f'{self._split}/{index}'

  def __getitem__(self, index: int) -> Record:
    try:
      data = self._records[index]
    except (IndexError, FailureError):
      raise
    except Exception as error:  # ArrayRecord and protobuf have no common base.
      reason = (str(error) or repr(error)).splitlines()[0]
      raise CorruptImageError(f'damaged record: {reason}') from error
    try:
      return self._record(index, data)
    except (ValueError, IndexError) as error:  # no UTF-8, a label past all
      raise CorruptImageError(f'damaged record: {error}') from error

  def _record(self, index: int, data: Mapping[str, Any]) -> Record:
    record: Record = {
      'id': data['id'].decode() if self._has_id else f'{self._split}/{index}',
      'image': data['image'],
      **captions_of(
        numbered_texts(data[name] for name in self._captions),
        len(self._captions),
      ),
    }
    if self._target:
      record = {**record, **self._target.labels(data)}
    elif self._has_label:
      record['label'] = int(data['label'])
    if not self._captions and self.label_names:
      labels = record.get('labels', [record.get('label', -1)])
      if any(label >= len(self.label_names) for label in labels):
        raise ValueError('its label has no name')
      record['caption'] = label_captions(self.label_names, labels)
    return record

  def __reduce__(self):
    # TFDS's reader holds open files; a worker process opens its own.
    return type(self), self._arguments


def _builder(spec: Spec):
  """Returns the TFDS builder that reads a data set from its own files.

  A built-in data set is built first, where it is not there yet.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  name = spec.location
  data_dir = tfds_folder()
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
    raise spec.error(
      f'{name} is not prepared in {data_dir}; known there: '
      f'{", ".join(known)} (tfds build {name} --file_format=array_record '
      'prepares it)'
    ) from error
