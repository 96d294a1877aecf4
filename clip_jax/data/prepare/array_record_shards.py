"""Writes ArrayRecord shards in the layout of TFDS, which reads the folder."""

import importlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clip_jax.data.sources import Record
from clip_jax.files import to_utf8

NAME, SPLIT = 'pairs', 'train'
# A file is a whole number of blocks, two of which say where records are.
OVERHEAD_BYTES = 3 * 2**16
_TEXT_OVERHEAD = 8  # of a text, and of a feature, in a tf.train.Example
_RECORD_OVERHEAD = 120


def shard_name(number: int, count: int) -> str:
  """Returns the name of a shard, as TFDS has it."""
  return f'{NAME}-{SPLIT}.array_record-{number:05}-of-{count:05}'


def record_bytes(record: Record, image_bytes: int) -> int:
  """Returns about what a record takes in a shard."""
  texts = [record['id'], *record['caption']]
  text_bytes = sum(len(to_utf8(x)) + _TEXT_OVERHEAD for x in texts)
  return image_bytes + text_bytes + _RECORD_OVERHEAD


def write_shard(
  path: Path, records: Iterable[tuple[int, Record]], *, with_label: bool
) -> int:
  """Writes a shard, and returns the number of its records.

  Records without a label have -1, where others have one.
  """
  from tensorflow_datasets.proto import tf_example_pb2

  example_class: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
  # A library without a description of its types.
  module = importlib.import_module('array_record.python.array_record_module')
  # TFDS's own options: each record can be read alone.
  writer = module.ArrayRecordWriter(str(path), 'group_size:1')
  count = 0
  try:
    for _, record in records:
      count += 1
      example = example_class()
      features = example.features.feature
      features['id'].bytes_list.value.append(to_utf8(record['id']))
      features['image'].bytes_list.value.append(record['image'])
      captions = map(to_utf8, record['caption'])
      features['caption'].bytes_list.value.extend(captions)
      if with_label:
        features['label'].int64_list.value.append(record.get('label', -1))
      # Otherwise the order of features is another in each process.
      writer.write(example.SerializeToString(deterministic=True))
  finally:
    writer.close()
  return count


def describe(
  shard_lengths: Sequence[int],
  shard_bytes: int,
  *,
  one_caption: bool,
  with_label: bool,
  label_names: Sequence[str] | None,
) -> dict[str, bytes]:
  """Returns TFDS's description of the shards: files by name.

  Args:
    shard_lengths: the number of records of each shard.
    shard_bytes: of all shards.
    one_caption: whether each record has exactly one.
    with_label: whether records have a label.
    label_names: of the labels, where they have names.
  """
  import tensorflow_datasets as tfds
  from etils import epath
  from tensorflow_datasets.core import (
    dataset_info,
    file_adapters,
    naming,
    splits,
  )

  text = tfds.features.Text()
  features: dict[str, Any] = {
    'id': text,
    'image': tfds.features.Image(shape=(None, None, 3)),
    'caption': text if one_caption else tfds.features.Sequence(text),
  }
  if with_label:
    features['label'] = (
      tfds.features.ClassLabel(names=list(label_names))
      if label_names
      else tfds.features.Scalar('int64')
    )
  with tempfile.TemporaryDirectory(prefix='clip_jax.') as folder:
    info = dataset_info.DatasetInfo(
      builder=dataset_info.DatasetIdentity(
        name=NAME,
        version=tfds.core.Version('1.0.0'),
        data_dir=folder,
        module_name='',
      ),
      features=tfds.features.FeaturesDict(features),
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    split = tfds.core.SplitInfo(
      name=SPLIT,
      shard_lengths=list(shard_lengths),
      num_bytes=shard_bytes,
      filename_template=naming.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=NAME,
        split=SPLIT,
        filetype_suffix='array_record',
      ),
    )
    info.set_splits(splits.SplitDict([split]))
    info.write_to_directory(folder)
    return {x.name: x.read_bytes() for x in sorted(Path(folder).iterdir())}
