"""Records of Parquet files: columns, row groups, damage."""

import io
import pickle
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import (
  columnar,
  open_source,
  parquet,
  parquet_index,
  parse_spec,
)
from clip_jax.errors import FailureError, UsageError
from tests.data.images import write_images
from tests.data.sources.tables import image_bytes, rows, write_parquet
from tests.data.stores import put_in_memory, s3_server


def test_bytes_captions_and_labels_by_name(tmp_path):
  content = rows(20, label=['red_cat', 'dog'] * 10)
  source = open_source(write_parquet(tmp_path / 'a.parquet', content))
  assert len(source) == 20
  assert source.label_names == ('dog', 'red_cat')
  assert source[13] == {
    'id': 'a.parquet/13',
    'image': image_bytes(13),
    'caption': ['caption 13'],
    'label': 0,
  }
  assert source.captions(19) == ['caption 19']
  assert source.id(19) == 'a.parquet/19'
  with pytest.raises(IndexError):
    source[20]


def test_labels_alone_are_captions(tmp_path):
  content = rows(4, label=['red_cat', 'dog', '', None])
  del content['caption']
  source = open_source(write_parquet(tmp_path / 'a.parquet', content))
  assert [source.captions(i) for i in range(4)] == [
    ['red cat'], ['dog'], [], [],
  ]  # fmt: skip
  assert [source[i].get('label') for i in range(4)] == [1, 0, -1, -1]


def test_captions_of_several_columns_and_lists(tmp_path):
  content = rows(3, more=[['x', None, ''], None, []], bytes=[b'y', None, b''])
  content['caption'][1] = None
  spec = write_parquet(tmp_path / 'a.parquet', content)
  source = open_source(spec, captions=('caption', 'more', 'bytes'))
  assert source.captions(0) == ['caption 0', 'x', 'y']
  assert source[1]['caption'] == []
  assert source.captions(2) == ['caption 2']


def test_structs_of_bytes_or_paths(tmp_path):
  write_images(tmp_path, ['below/x.png'])
  images = [
    {'bytes': image_bytes(5), 'path': 'x.png'},
    {'bytes': None, 'path': 'below/x.png'},
    {'bytes': None, 'path': None},
    None,
  ]
  content = rows(4, image=images)
  source = open_source(write_parquet(tmp_path / 'a.parquet', content))
  assert source[0]['image'] == image_bytes(5)
  assert source[1]['image'] == (tmp_path / 'below/x.png').read_bytes()
  for index in (2, 3):
    with pytest.raises(CorruptImageError, match='no image'):
      source[index]


def test_paths_are_relative_to_the_file(tmp_path):
  write_images(tmp_path, ['images/0.png'])
  paths = ['images/0.png', 'none.png', 'a\0b', 'https://x.org/a.png', None]
  spec = write_parquet(tmp_path / 'a.parquet', rows(5, image=paths))
  source = open_source(spec)
  assert source[0]['image'] == (tmp_path / 'images/0.png').read_bytes()
  for index, reason in enumerate(['no such', 'NUL', 'URL', 'no image'], 1):
    with pytest.raises(CorruptImageError, match=reason):
      source[index]


@pytest.mark.parametrize(
  'kind',
  [
    pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())
  ],
)  # fmt: skip
def test_layouts_of_bytes(tmp_path, kind):
  images = pa.array([image_bytes(0), None, image_bytes(0)], pa.binary())
  table = pa.table({'image': images.cast(kind), 'caption': ['a', 'b', 'c']})
  source = open_source(write_parquet(tmp_path / 'a.parquet', table))
  assert source[2]['image'] == image_bytes(0)


def test_many_files_are_one_source_in_the_order_of_their_names(tmp_path):
  for i in range(3):
    write_parquet(tmp_path / f'p/{i:05}.parquet', rows(10 + i), group=4)
  (tmp_path / 'p/_SUCCESS').touch()
  source = open_source(f'parquet:{tmp_path}/p/{{00000..00002}}.parquet')
  assert len(source) == 33
  assert source.id(9) == '00000.parquet/9'
  assert source.id(10) == '00001.parquet/0'
  assert source[32]['id'] == '00002.parquet/11'
  assert source[32]['caption'] == ['caption 11']
  assert len({source.id(i) for i in range(33)}) == 33
  folder = open_source(f'parquet:{tmp_path}/p')
  assert [folder[i] for i in range(33)] == [source[i] for i in range(33)]


def test_only_footers_are_read_at_opening(tmp_path, monkeypatch):
  spec = write_parquet(tmp_path / 'a.parquet', rows(20))
  monkeypatch.setattr(parquet, '_batches', None)
  assert len(open_source(spec)) == 20


def test_a_row_group_is_decoded_once_by_all_threads(tmp_path, monkeypatch):
  source = open_source(write_parquet(tmp_path / 'a.parquet', rows(16)))
  decoded = []
  real = parquet._batches

  def batches(file, metadata, number, group, columns):
    decoded.append(number)
    return real(file, metadata, number, group, columns)

  monkeypatch.setattr(parquet, '_batches', batches)
  threads = [
    threading.Thread(target=source.__getitem__, args=[i]) for i in range(16)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(decoded) == [0, 1]
  copy = pickle.loads(pickle.dumps(source))
  assert copy[3] == source[3]
  assert sorted(decoded) == [0, 0, 1]


def test_few_decoded_groups_are_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(columnar, 'KEPT_BYTES', 10)
  source = open_source(write_parquet(tmp_path / 'a.parquet', rows(32)))
  for i in range(32):
    assert source[i]['caption'] == [f'caption {i}']
  assert len(source._kept._chunks) == 1


@pytest.mark.parametrize(
  ('columns', 'captions', 'message'),
  [
    ({'caption': ['a']}, ('caption',), "no column 'image'; it has caption"),
    ({'url': ['a'], 'caption': ['a']}, ('caption',), 'data fetch downloads'),
    ({'image': [1], 'caption': ['a']}, ('caption',), "'image' holds int64"),
    ({'image': [b'a'], 'caption': [1]}, ('caption',), "'caption' holds int64"),
    ({'image': [b'a'], 'label': [0.5]}, ('caption',), "'label' holds double"),
    ({'image': [b'a']}, ('caption',), "no column 'caption'; it has image"),
    ({'image': [b'a'], 'text': ['a']}, ('x',), "no column 'x'; it has image, "),
  ],
)
def test_wrong_columns_are_one_line(tmp_path, columns, captions, message):
  spec = write_parquet(tmp_path / 'a.parquet', columns)
  with pytest.raises(UsageError, match=message):
    open_source(spec, captions=captions)


def test_files_without_rows_or_that_are_not_there(tmp_path):
  spec = write_parquet(tmp_path / 'a.parquet', pa.table(rows(2)).slice(0, 0))
  with pytest.raises(UsageError, match='no rows'):
    open_source(spec)
  with pytest.raises(UsageError, match='matches no file'):
    open_source(f'parquet:{tmp_path}/none*.parquet')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UsageError, match=r'no \.parquet file'):
    open_source(f'parquet:{tmp_path}/empty')


def test_a_damaged_file_is_named_and_left_out(tmp_path):
  for i in range(3):
    write_parquet(tmp_path / f'{i}.parquet', rows(4))
  whole = (tmp_path / '1.parquet').read_bytes()
  (tmp_path / '1.parquet').write_bytes(whole[:-50])
  source = open_source(f'parquet:{tmp_path}/*.parquet')
  assert len(source) == 8
  assert r'left out 1 file that cannot be read: ' in source.notices[0]
  assert '1.parquet' in source.notices[0]
  for i in (0, 2):
    (tmp_path / f'{i}.parquet').write_bytes(b'')
  with pytest.raises(UsageError, match='no file can be read'):
    open_source(f'parquet:{tmp_path}/*.parquet')


def test_a_damaged_row_group_is_the_fault_of_its_records(tmp_path):
  spec = write_parquet(tmp_path / 'a.parquet', rows(24))
  path = tmp_path / 'a.parquet'
  data = bytearray(path.read_bytes())
  start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
  data[start : start + 40] = b'\xff' * 40
  path.write_bytes(bytes(data))
  source = open_source(spec)
  assert source[7]['caption'] == ['caption 7']
  assert source[16]['caption'] == ['caption 16']
  with pytest.raises(CorruptImageError, match='row group 1 of'):
    source[8]
  assert source.captions(8) == ['caption 8']  # its own column is whole


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, monkeypatch):
  content = rows(4, image=[bytes(2**24)] * 2 + [b'x'] * 2)
  path = tmp_path / 'a.parquet'
  pq.write_table(
    pa.table(content), path, row_group_size=4, compression='zstd',
    use_dictionary=False,
  )  # fmt: skip
  assert path.stat().st_size < 2**16
  monkeypatch.setattr(parquet, 'MAX_CHUNK_BYTES', 2**22)
  with pytest.raises(UsageError, match='row groups have up to 0'):
    open_source(f'parquet:{path}')
  monkeypatch.setattr(parquet, 'large_groups', lambda *arguments: ())
  source = open_source(f'parquet:{path}')
  with pytest.raises(CorruptImageError, match='smaller row groups'):
    source[3]
  assert source.captions(3) == ['caption 3']


def test_a_repeated_value_is_decoded_in_small_batches(tmp_path, monkeypatch):
  """A page of a few bytes may stand for a large image a million times."""
  content = rows(3000, image=[bytes(10**5)] * 3000)
  spec = write_parquet(tmp_path / 'a.parquet', content, group=3000)
  assert (tmp_path / 'a.parquet').stat().st_size < 10**6
  monkeypatch.setattr(columnar, 'MAX_CHUNK_BYTES', 10**8)
  monkeypatch.setattr(parquet, 'MAX_CHUNK_BYTES', 10**8)
  source = open_source(spec)
  before = pa.total_allocated_bytes()
  assert source[0]['image'] == bytes(10**5)
  assert pa.total_allocated_bytes() - before < 3 * 10**8
  with pytest.raises(CorruptImageError, match='smaller row groups'):
    source[2999]


def test_a_file_that_changed_ends_the_run(tmp_path):
  spec = write_parquet(tmp_path / 'a.parquet', rows(24))
  source = open_source(spec)
  write_parquet(tmp_path / 'a.parquet', rows(10))
  with pytest.raises(FailureError, match='changed since it was opened') as why:
    source[20]
  assert not isinstance(why.value, CorruptImageError)


def test_files_in_memory_and_in_a_bucket(tmp_path):
  write_parquet(tmp_path / 'a.parquet', rows(12))
  data = (tmp_path / 'a.parquet').read_bytes()
  local = open_source(f'parquet:{tmp_path}/a.parquet')
  url = put_in_memory('tables/a.parquet', data)
  remote = open_source(f'parquet:{url}')
  assert [remote[i] for i in range(12)] == [local[i] for i in range(12)]
  with s3_server('tables'):
    from clip_jax.data import storage

    storage.write_bytes('s3://tables/x/a.parquet', data)
    remote = open_source('parquet:s3://tables/x/*.parquet')
    assert remote[11] == local[11]


def test_paths_of_a_remote_file_stay_in_its_folder():
  write = io.BytesIO()
  paths = ['x.png', '../secret.png', '/etc/passwd', 'memory://paths/x.png']
  pq.write_table(pa.table(rows(4, image=paths)), write)
  put_in_memory('paths/t/x.png', image_bytes(1))
  url = put_in_memory('paths/t/a.parquet', write.getvalue())
  source = open_source(f'parquet:{url}')
  assert source[0]['image'] == image_bytes(1)
  for index in (1, 2, 3):
    with pytest.raises(CorruptImageError, match='leads out of'):
      source[index]


def test_an_index_of_rows_spares_the_footers(tmp_path, monkeypatch):
  for i in range(3):
    write_parquet(tmp_path / f'p/{i}.parquet', rows(20 + i))
  (tmp_path / 'p/3.parquet').write_bytes(b'PAR1')
  spec = parse_spec(f'parquet:{tmp_path}/p')
  index = parquet_index.write_row_index(spec)
  assert index.rows[f'{tmp_path}/p/0.parquet'] == [8, 8, 4]
  assert (len(index.rows), index.read) == (3, 3)
  assert '3.parquet' in index.notices[0]
  asked = []
  real = parquet_index.row_groups

  def row_groups(path):
    asked.append(path)
    return real(path)

  monkeypatch.setattr(parquet, 'row_groups', row_groups)
  monkeypatch.setattr(parquet_index, 'row_groups', row_groups)
  (tmp_path / 'p/3.parquet').unlink()
  source = open_source(f'{tmp_path}/p')
  assert (len(source), asked) == (63, [])
  assert source[62]['caption'] == ['caption 21']
  write_parquet(tmp_path / 'p/1.parquet', rows(7))
  assert len(open_source(f'{tmp_path}/p')) == 49
  assert asked == [f'{tmp_path}/p/1.parquet']
  assert parquet_index.write_row_index(spec).read == 1
  (tmp_path / 'p/clip_jax_index/parquet_rows.json').write_text('{"files": 3}')
  with pytest.raises(FailureError, match='files'):
    open_source(f'{tmp_path}/p')


def test_rows_of_a_file_with_other_columns_are_corrupt(tmp_path):
  write_parquet(tmp_path / 'a.parquet', rows(3))
  write_parquet(
    tmp_path / 'queries.parquet', {'query': ['x', 'y'], 'n': [1, 2]}
  )
  source = open_source(f'parquet:{tmp_path}')
  assert len(source) == 5
  assert source[2]['caption'] == ['caption 2']
  assert source.captions(3) == []
  reason = (
    r"queries.parquet: no column 'caption', which .*a.parquet has \(here: q"
  )
  with pytest.raises(CorruptImageError, match=reason):
    source[4]


def test_a_note_tells_of_splits_that_are_read_together(tmp_path):
  for name in ('train-0.parquet', 'train-1.parquet', 'test-0.parquet'):
    write_parquet(tmp_path / name, rows(3))
  (note,) = open_source(f'parquet:{tmp_path}').notices
  assert 'files of the splits test, train are read together' in note
  assert note.endswith('or as hf:FOLDER#train')
  assert not open_source(f'parquet:{tmp_path}/train-*.parquet').notices
  assert not open_source(f'parquet:{tmp_path}/test-0.parquet').notices
