"""Reads `arrayrecord:PATTERN[#SPLIT]`: ArrayRecord files, without TensorFlow.

Either a folder in TFDS's layout (features.json and dataset_info.json beside the
shards, as `clip-jax data build` writes them), or files of tf.train.Example
whose features are `image`, `caption` and/or `label`. A shard of a bucket is
copied into the cache when a record of it is read, as the reader is C++.
"""

import bisect
import collections
import importlib
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Record, Source, Spec
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.data.sources.columns import (
  captions_of,
  numbered_texts,
  require_columns,
)
from clip_jax.data.sources.shard_files import (
  list_files,
  read_each,
  short_names,
)
from clip_jax.data.sources.tfds import TfdsSource
from clip_jax.files import MAX_TEXT_BYTES, check_folder

_SUFFIX = '.array_record'
_DESCRIBED_IN = ('.json', '.txt')
_OPEN_READERS = 256  # of a process; a file handle each
_IMAGES = ('image', 'image/encoded', 'jpg', 'jpeg', 'png', 'webp')
_CAPTIONS = (*DEFAULT_CAPTIONS, 'text')


def open_array_records(spec: Spec, captions: tuple[str, ...]) -> Source:
  """Opens ArrayRecord files, by what lies beside them; see `open_source`.

  Raises:
    UsageError: there are none, none can be read, or a column is missing.
  """
  folder = storage.local_or_url(spec.location)
  described = 'features.json' in (
    storage.list_folder(folder) if storage.is_folder(folder) else ()
  )
  source_class = DescribedRecords if described else ExampleRecords
  return source_class(spec, captions)


class RecordRange(NamedTuple):
  """Consecutive records of a file."""

  path: str
  first: int
  count: int


class ArrayRecords(Sequence[bytes]):
  """The records of ArrayRecord files, as one sequence."""

  def __init__(self, shards: Sequence[RecordRange]):
    self.shards = [x for x in shards if x.count]
    self.ends = list(itertools.accumulate(x.count for x in self.shards))
    self._readers: collections.OrderedDict[str, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self.ends[-1] if self.ends else 0

  def find(self, index: int) -> tuple[int, int]:
    """Returns the number of a record's shard, and its index in the file."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = bisect.bisect_right(self.ends, index)
    shard = self.shards[number]
    return number, index - self.ends[number] + shard.count + shard.first

  def __getitem__(self, index: Any) -> Any:
    number, position = self.find(index)
    path = self.shards[number].path
    with self._lock:
      reader = self._readers.pop(path, None) or open_reader(path)
      self._readers[path] = reader
      while len(self._readers) > _OPEN_READERS:
        self._readers.popitem(last=False)
    try:
      return reader.read([position])[0]
    except Exception as error:  # the reader raises RuntimeError and others
      raise CorruptImageError(
        f'damaged record: {_first_line(error)}'
      ) from error


def open_reader(path: str) -> Any:
  """Opens an ArrayRecord file.

  Raises:
    CorruptImageError: it is none, or is damaged.
    FailureError: it is missing, or its store does not answer.
  """
  # A library without a description of its types.
  module = importlib.import_module('array_record.python.array_record_module')
  local = storage.local_copy(path)
  try:
    reader = module.ArrayRecordReader(
      local, options='readahead_buffer_size:0', file_reader_buffer_size=2**15
    )
    if not reader.ok():
      raise CorruptImageError('no ArrayRecord file, or it is damaged')
    return reader
  except CorruptImageError:
    raise
  except Exception as error:  # the reader raises RuntimeError and others
    raise CorruptImageError(_first_line(error)) from error


class DescribedRecords(TfdsSource):
  """Records of a folder in TFDS's layout, wherever it is."""

  def _open(self, spec: Spec) -> Any:
    import tensorflow_datasets as tfds

    folder = storage.local_or_url(spec.location)
    if storage.is_remote(folder):
      self._folder = folder
      folder = self._copy_description(folder)
    else:
      self._folder = folder
      check_folder(folder, _DESCRIBED_IN)
    try:
      return tfds.builder_from_directory(folder)
    except Exception as error:  # json, protobuf and TFDS have no common base
      reason = _first_line(error)
      raise spec.error(f"no data set in TFDS's layout: {reason}") from error

  def _copy_description(self, folder: str) -> str:
    """Returns a folder of copies of the files beside the shards."""
    copies = tempfile.mkdtemp(prefix='clip_jax.')
    weakref.finalize(self, shutil.rmtree, copies, ignore_errors=True)
    for name in storage.list_folder(folder):
      if name.endswith(_DESCRIBED_IN):
        data = storage.read_all(storage.join(folder, name), MAX_TEXT_BYTES)
        with open(os.path.join(copies, name), 'wb') as file:
          file.write(data)
    return copies

  def _read(self, builder: Any, as_bytes: Any) -> Any:
    shards = [
      RecordRange(
        storage.join(self._folder, os.path.basename(x.filename)), x.skip, x.take
      )
      for x in builder.info.splits[self._split].file_instructions
    ]
    return _Decoded(ArrayRecords(shards), builder.info.features, as_bytes)


class _Decoded:
  """Records that are decoded by the features of TFDS."""

  def __init__(self, records: ArrayRecords, features: Any, as_bytes: Any):
    self._records = records
    self._features = features
    self._as_bytes = as_bytes

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    return self._features.deserialize_example_np(
      self._records[index], decoders={'image': self._as_bytes}
    )


class ExampleRecords(Source):
  """Records of files of tf.train.Example; the id is the file and the index."""

  def __init__(self, spec: Spec, captions: tuple[str, ...]):
    """Counts the records of each file, and looks at the first."""
    self.spec = spec.text
    self._arguments = spec, captions
    paths = list_files(spec, _SUFFIX)
    counts, notices = read_each(
      spec, paths, lambda path: open_reader(path).num_records()
    )
    self.notices = tuple(f'data {spec.text!r}: {line}' for line in notices)
    self._records = ArrayRecords(
      [RecordRange(x, 0, n) for x, n in counts.items()]
    )
    self._names = short_names([x.path for x in self._records.shards])
    if not len(self):
      raise spec.error('no records')
    self._find_features(spec, captions)

  def _find_features(self, spec: Spec, captions: tuple[str, ...]) -> None:
    names = next(
      (x for i in range(min(len(self), 100)) if (x := self._names_of(i))), []
    )
    if not names:
      raise spec.error('the first records hold no tf.train.Example')
    self._image = next((name for name in _IMAGES if name in names), '')
    require_columns(spec, [self._image or 'image'], names)
    self._label = 'label' if 'label' in names else ''
    wanted = captions
    if captions == DEFAULT_CAPTIONS:
      wanted = tuple(name for name in _CAPTIONS if name in names)[:1]
      if not wanted and not self._label:
        require_columns(spec, captions, names)
    self._captions = wanted
    if not wanted:
      self.remedy = 'add a feature caption'

  def _names_of(self, index: int) -> list[str]:
    try:
      return sorted(self._example(index))
    except CorruptImageError:
      return []

  def _example(self, index: int) -> Mapping[str, Any]:
    """Returns the features of a record by name."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    data = self._records[index]
    messages: Any = tf_example_pb2
    try:
      return messages.Example.FromString(data).features.feature
    except DecodeError as error:
      raise CorruptImageError('no tf.train.Example') from error

  def __len__(self) -> int:
    return len(self._records)

  def id(self, index: int) -> str:
    number, position = self._records.find(index)
    return f'{self._names[number]}/{position}'

  def __getitem__(self, index: int) -> Record:
    example = self._example(index)
    images = list(example[self._image].bytes_list.value) or [b'']
    if not images[0]:
      raise CorruptImageError(f'no image in the feature {self._image!r}')
    names = self._captions or ([self._label] if self._label else [])
    cells = [list(example[name].bytes_list.value) for name in names]
    try:
      texts = [(i, x) for i, x in numbered_texts(cells) if x.strip()]
    except UnicodeDecodeError as error:
      raise CorruptImageError(f'a text is not UTF-8: {error}') from error
    record: Record = {
      'id': self.id(index),
      'image': images[0],
      **captions_of(texts, len(names)),
    }
    if self._label and (labels := example[self._label].int64_list.value):
      record['label'] = int(labels[0])
    return record

  def __reduce__(self):
    # The readers hold open files; a worker process opens its own.
    return ExampleRecords, self._arguments


def _first_line(error: BaseException) -> str:
  return (str(error) or repr(error)).splitlines()[0].rstrip('.')
