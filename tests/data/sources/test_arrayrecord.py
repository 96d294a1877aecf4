"""ArrayRecord files: TFDS's layout, and files of tf.train.Example."""

import os
import pathlib
import pickle

import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import open_source
from clip_jax.errors import MissingFileError, UsageError
from tests.data.sources.tables import image_bytes
from tests.data.stores import put_in_memory


def example(index: int, **features) -> bytes:
  """A serialized tf.train.Example with an image and a caption."""
  message = tf_example_pb2.Example()
  values = {'image': image_bytes(index), 'caption': f'caption {index}'}
  for name, value in (values | features).items():
    feature = message.features.feature[name]
    for item in value if isinstance(value, list) else [value]:
      if isinstance(item, int):
        feature.int64_list.value.append(item)
      elif item is not None:
        data = item if isinstance(item, bytes) else item.encode()
        feature.bytes_list.value.append(data)
  return message.SerializeToString()


def write(path: pathlib.Path, records: list[bytes]) -> None:
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def test_a_folder_in_the_layout_of_tfds(emoji_folder):
  by_name = open_source('tfds:emoji#test', captions=('caption_fr',))
  spec = f'arrayrecord:{emoji_folder}#test'
  by_path = open_source(spec, captions=('caption_fr',))
  assert len(by_path) == len(by_name)
  assert by_path.label_names == by_name.label_names
  for index in (0, 7, len(by_name) - 1):
    assert by_path[index] == by_name[index]
    assert by_path.id(index) == by_name.id(index)
  assert pickle.loads(pickle.dumps(by_path))[7] == by_name[7]
  tenth = open_source(f'arrayrecord:{emoji_folder}#train[10%:20%]')
  assert tenth[0] == open_source('tfds:emoji#train[10%:20%]')[0]
  with pytest.raises(UsageError, match="no split 'val'; it has train, test"):
    open_source(f'arrayrecord:{emoji_folder}#val')


def test_a_folder_of_a_bucket(emoji_folder):
  for path in pathlib.Path(emoji_folder).iterdir():
    put_in_memory(f'arrays/1.0.0/{path.name}', path.read_bytes())
  local = open_source('tfds:emoji#test')
  remote = open_source('arrayrecord:memory://arrays/1.0.0#test')
  assert [remote[i] for i in (0, 5)] == [local[i] for i in (0, 5)]
  assert pickle.loads(pickle.dumps(remote))[5] == local[5]


def test_files_of_examples(tmp_path):
  write(tmp_path / 'a-00000.array_record', [example(i) for i in range(3)])
  texts = ['x', 'y']
  more = [example(3, caption=texts, label=4), example(4, caption=None)]
  write(tmp_path / 'a-00001.array_record', more)
  source = open_source(f'arrayrecord:{tmp_path}/a-*.array_record')
  assert len(source) == 5
  assert source[1] == {
    'id': 'a-00000.array_record/1',
    'image': image_bytes(1),
    'caption': ['caption 1'],
  }
  assert source[3]['caption'] == texts
  assert source[4]['caption'] == []
  assert source.id(4) == 'a-00001.array_record/1'
  folder = open_source(f'arrayrecord:{tmp_path}')
  assert [folder[i] for i in range(5)] == [source[i] for i in range(5)]
  assert pickle.loads(pickle.dumps(source))[3] == source[3]
  data = (tmp_path / 'a-00000.array_record').read_bytes()
  url = put_in_memory('examples/a.array_record', data)
  assert open_source(f'arrayrecord:{url}')[2]['image'] == image_bytes(2)


def test_damage_is_named_and_left_out(tmp_path):
  records = [
    b'\xff no example',
    example(1, image=None),
    example(2, caption=b'\xff'),
  ]
  write(tmp_path / 'a.array_record', [*records, example(3)])
  (tmp_path / 'b.array_record').write_bytes(os.urandom(1000))
  source = open_source(f'arrayrecord:{tmp_path}')
  assert 'left out 1 file' in source.notices[0]
  for index, reason in enumerate(['no tf', 'no image', 'not UTF-8']):
    with pytest.raises(CorruptImageError, match=reason):
      source[index]
  assert source.captions(0) == []
  assert source[3]['image'] == image_bytes(3)


def test_a_missing_shard_ends_the_run(tmp_path):
  for i in range(2):
    write(tmp_path / f'{i}.array_record', [example(i)])
  source = open_source(f'arrayrecord:{tmp_path}')
  copy = pickle.dumps(source)
  (tmp_path / '1.array_record').unlink()
  with pytest.raises(MissingFileError):
    open_source(f'arrayrecord:{tmp_path}/0.array_record')[0] and source[1]
    source._records._readers.clear()
    source[1]
  assert len(pickle.loads(copy)) == 1


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('none*', 'matches no file'),
    ('', r'no \.array_record file'),
    ('x.array_record', 'the first records hold no tf.train.Example'),
    ('y.array_record', "no column 'image'; it has caption"),
  ],
)
def test_mistakes_are_one_line(tmp_path, name, message):
  if name == 'x.array_record':
    write(tmp_path / name, [b'\xff\xff\xff'])
  if name == 'y.array_record':
    message_only = tf_example_pb2.Example()
    message_only.features.feature['caption'].bytes_list.value.append(b'a')
    write(tmp_path / name, [message_only.SerializeToString()])
  with pytest.raises(UsageError, match=message):
    open_source(f'arrayrecord:{tmp_path}/{name}')
