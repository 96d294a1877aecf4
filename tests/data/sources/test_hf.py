"""Directories of Hugging Face data sets: Arrow and Parquet files."""

import json
import pickle

import pyarrow as pa
import pytest

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from tests.data.sources.tables import (
  LABEL_FEATURES,
  hugging_face_rows,
  image_bytes,
  rows,
  save_to_disk,
  write_parquet,
  write_stream,
)
from tests.data.stores import put_in_memory


def test_a_saved_data_set(tmp_path):
  save_to_disk(tmp_path / 'd', hugging_face_rows(20), LABEL_FEATURES)
  source = open_source(f'hf:{tmp_path}/d')
  assert len(source) == 20
  assert source.label_names == ('red_cat', 'dog')
  assert source[15] == {
    'id': 'data-00001-of-00002.arrow/5',
    'image': image_bytes(15),
    'caption': ['caption 15'],
    'label': 1,
  }
  assert pickle.loads(pickle.dumps(source))[15] == source[15]


def test_a_dictionary_of_splits(tmp_path):
  for split, count in (('train', 6), ('test', 4)):
    save_to_disk(tmp_path / 'd' / split, rows(count))
  (tmp_path / 'd/dataset_dict.json').write_text('{"splits": ["train", "test"]}')
  assert len(open_source(f'hf:{tmp_path}/d')) == 6
  assert len(open_source(f'hf:{tmp_path}/d#test')) == 4
  with pytest.raises(UsageError, match="no split 'val'; it has train, test"):
    open_source(f'hf:{tmp_path}/d#val')


@pytest.mark.parametrize(
  'name', ['data/{}-00000-of-00001.parquet', '{}/0000.parquet', 'x-{}.parquet']
)
def test_parquet_files_of_the_hub(tmp_path, name):
  features = {'info': {'features': LABEL_FEATURES}}
  for split, count in (('train', 6), ('test', 4)):
    table = pa.table(hugging_face_rows(count)).replace_schema_metadata(
      {'huggingface': json.dumps(features)}
    )
    write_parquet(tmp_path / 'd' / name.format(split), table)
  (tmp_path / 'd/README.md').write_text('---\n---\n')
  source = open_source(f'hf:{tmp_path}/d#test')
  assert len(source) == 4
  assert source.label_names == ('red_cat', 'dog')
  assert source[3]['caption'] == ['caption 3']
  assert len(open_source(f'hf:{tmp_path}/d')) == 6


def test_a_split_of_files_that_a_pattern_names(tmp_path):
  for split, count in (('train', 6), ('test', 4)):
    write_parquet(tmp_path / f'data/{split}-0.parquet', rows(count))
    write_parquet(tmp_path / f'folders/{split}/0.parquet', rows(count))
  for pattern in ('data/*.parquet', 'folders/*/*.parquet'):
    assert len(open_source(f'hf:{tmp_path}/{pattern}#test')) == 4
    assert len(open_source(f'hf:{tmp_path}/{pattern}')) == 10
    with pytest.raises(UsageError, match="no split 'val'; it has test, train"):
      open_source(f'hf:{tmp_path}/{pattern}#val')
  file = f'hf:{tmp_path}/data/train-0.parquet'
  assert len(open_source(f'{file}#train')) == 6
  with pytest.raises(UsageError, match="no split 'test'; it has train"):
    open_source(f'{file}#test')


def test_several_folders_are_refused(tmp_path):
  for name in ('en/train-0.parquet', 'de/train-0.parquet'):
    write_parquet(tmp_path / name, rows(3))
  with pytest.raises(UsageError, match=f'2 paths match, .* hf:{tmp_path}/de,'):
    open_source(f'hf:{tmp_path}/{{en,de}}')
  assert len(open_source(f'hf:{tmp_path}/{{en,de}}/*.parquet')) == 6
  assert len(open_source(f'hf:{tmp_path}/e*')) == 3


def test_a_note_tells_of_files_of_no_split(tmp_path):
  for name in ('train-0', 'test-0', 'extra', 'more'):
    write_parquet(tmp_path / f'data/{name}.parquet', rows(3))
  for split in ('train', 'test'):
    source = open_source(f'hf:{tmp_path}#{split}')
    assert len(source) == 3
    assert source.notices == (
      f"data 'hf:{tmp_path}#{split}': 2 files whose names tell no split left "
      "out ('data/extra.parquet', 'data/more.parquet')",
    )


def test_a_note_tells_of_configurations_that_are_read_together(tmp_path):
  for name in ('de/train-0.parquet', 'en/train-0.parquet', 'en/test-0.parquet'):
    write_parquet(tmp_path / name, rows(3))
  source = open_source(f'hf:{tmp_path}#train')
  assert len(source) == 6
  one = f'hf:{tmp_path}/de#train is one of them'
  assert source.notices == (
    f"data 'hf:{tmp_path}#train': its files lie in 2 folders, de, en, which "
    f'are read together; {one}',
  )
  assert not open_source(f'hf:{tmp_path}/en#train').notices
  assert not open_source(f'hf:{tmp_path}#test').notices


def test_labels_alone_are_captions_and_text_is_one(tmp_path):
  content = hugging_face_rows(4)
  del content['caption']
  save_to_disk(tmp_path / 'labels', content, LABEL_FEATURES)
  assert open_source(f'hf:{tmp_path}/labels').captions(0) == ['red cat']
  content['text'] = ['a', 'b', 'c', 'd']
  save_to_disk(tmp_path / 'texts', content, LABEL_FEATURES)
  assert open_source(f'hf:{tmp_path}/texts').captions(1) == ['b']


def test_a_text_that_is_not_utf8_is_the_fault_of_its_record(tmp_path):
  texts = pa.array([b'a', b'\xff\xfe', b'c']).view(pa.string())
  content = rows(3) | {'caption': texts}
  save_to_disk(tmp_path / 'd', content, shards=1)
  source = open_source(f'hf:{tmp_path}/d')
  assert source.captions(0) == ['a'] and source.captions(2) == ['c']
  with pytest.raises(CorruptImageError, match='UTF-8'):
    source[1]


def test_the_file_format_compression_and_a_cut_off_end(tmp_path):
  table = pa.table(rows(20))
  for codec in ('lz4', 'zstd'):
    options = pa.ipc.IpcWriteOptions(compression=codec)
    path = tmp_path / codec / 'x-train.arrow'
    path.parent.mkdir()
    with pa.ipc.new_file(path, table.schema, options=options) as file:
      file.write_table(table, max_chunksize=8)
    source = open_source(f'hf:{tmp_path}/{codec}')
    assert [source[i]['caption'] for i in range(20)] == [
      [f'caption {i}'] for i in range(20)
    ]
  (tmp_path / 'cut').mkdir()
  write_stream(tmp_path / 'cut/x.arrow', table)
  data = (tmp_path / 'cut/x.arrow').read_bytes()
  (tmp_path / 'cut/x.arrow').write_bytes(data[: len(data) * 3 // 4])
  source = open_source(f'hf:{tmp_path}/cut')
  assert len(source) == 8
  assert 'x.arrow: after 8 rows: it is cut off' in source.notices[0]


def test_remote_directories(tmp_path):
  save_to_disk(tmp_path / 'd', hugging_face_rows(12), LABEL_FEATURES)
  for path in (tmp_path / 'd').iterdir():
    put_in_memory(f'hugging/{path.name}', path.read_bytes())
  local = open_source(f'hf:{tmp_path}/d')
  remote = open_source('hf:memory://hugging')
  assert [remote[i] for i in range(12)] == [local[i] for i in range(12)]
  assert storage.is_folder('memory://hugging')


@pytest.mark.parametrize(
  ('state', 'message'),
  [
    ({'_data_files': [{'filename': '../x.arrow'}]}, r"names the file '\.\./x"),
    ({'_data_files': [{'filename': 'a\0'}]}, 'names the file'),
    ({'_data_files': [3]}, 'names the file None'),
    ({'_data_files': []}, 'names no files'),
    ({'_data_files': [], '_indices_data_files': ['x']}, 'flatten_indices'),
  ],
)
def test_a_hostile_state_is_refused(tmp_path, state, message):
  save_to_disk(tmp_path / 'd', rows(4))
  (tmp_path / 'd/state.json').write_text(json.dumps(state))
  with pytest.raises(UsageError, match=message):
    open_source(f'hf:{tmp_path}/d')


def test_other_folders_are_refused(tmp_path):
  with pytest.raises(UsageError, match='matches no file'):
    open_source(f'hf:{tmp_path}/none')
  with pytest.raises(UsageError, match=r'no state\.json'):
    open_source(f'hf:{tmp_path}')
