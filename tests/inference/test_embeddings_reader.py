"""Tables of embeddings read back, and files that are something else."""

import os
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import embeddings, embeddings_reader
from clip_jax.inference.embeddings import SUFFIXES
from clip_jax.inference.embeddings_reader import Entry, open_embeddings
from clip_jax.inference.nearest_in_table import search_table
from tests.inference.tables import unit_rows, write_table

KINDS = ['image', 'image', 'text'] * 20


@pytest.fixture(params=SUFFIXES)
def table(request, tmp_path, monkeypatch):
  """Sixty rows, read seven at a time."""
  monkeypatch.setattr(embeddings, '_GROUP_BYTES', 25 * 16 * 4)
  monkeypatch.setattr(embeddings_reader, '_CHUNK_BYTES', 7 * 16 * 4)
  path = write_table(
    tmp_path / f'e{request.param}', unit_rows(0, 60), kinds=KINDS,
    about={'model': 'abc'}, block=10,
  )  # fmt: skip
  with open_embeddings(path) as table:
    yield table


def test_chunks_are_all_rows_in_order(table):
  chunks = list(table.chunks())
  assert max(len(chunk.rows) for chunk in chunks) <= 7
  rows = np.concatenate([chunk.rows for chunk in chunks])
  vectors = np.concatenate([chunk.vectors for chunk in chunks])
  np.testing.assert_array_equal(rows, np.arange(60))
  np.testing.assert_array_equal(vectors, unit_rows(0, 60))


def test_chunks_of_one_kind(table):
  chunks = list(table.chunks('text'))
  rows = np.concatenate([chunk.rows for chunk in chunks])
  assert rows.tolist() == list(range(2, 60, 3))
  vectors = np.concatenate([chunk.vectors for chunk in chunks])
  np.testing.assert_array_equal(vectors, unit_rows(0, 60)[2::3])


def test_entries_by_row(table):
  entries = table.entries([59, 0, 30])
  assert entries[59] == Entry('59.png', 'text', 'caption 59')
  assert entries[0] == Entry('0.png', 'image', 'caption 0')
  assert entries[30].id == '30.png'


def test_what_made_it(table):
  assert table.about == {'model': 'abc'}
  assert (table.rows, table.dims) == (60, 16)
  assert table.count_kinds() == {'image': 40, 'text': 20}


def test_a_file_of_numpy_savez_serves(tmp_path):
  rows = unit_rows(0, 2)
  np.savez(
    tmp_path / 'e.npz', embeddings=rows, ids=['a', 'b'],
    kinds=['image', 'text'], captions=['', 'b'],
  )  # fmt: skip
  with open_embeddings(tmp_path / 'e.npz') as table:
    assert table.about == {}
    assert table.entries([1])[1] == Entry('b', 'text', 'b')
    np.testing.assert_array_equal(next(table.chunks()).vectors, rows)


def _truncated(path):
  write_table(path, unit_rows(0, 60))
  path.write_bytes(path.read_bytes()[:-100])


def _compressed(path):
  np.savez_compressed(path, embeddings=unit_rows(0, 2))


def _without_ids(path):
  np.savez(path, embeddings=unit_rows(0, 2))


def _pickled(path):
  np.savez(path, ids=np.array([{}], object))


def _lying(path):
  """Says that it has more rows than the file has bytes."""
  write_table(path, unit_rows(0, 60))
  data = path.read_bytes()
  path.write_bytes(data.replace(b'(60, 16), }     ', b'(9999999, 16), }'))


def _garbled(path):
  """Has an array whose header cannot be parsed."""
  write_table(path, unit_rows(0, 60))
  data = path.read_bytes()
  path.write_bytes(data.replace(b'(60, 16), }', b'(60, 16), ('))


def _of_integers(path):
  np.savez(
    path, embeddings=np.zeros((1, 4), int), ids=['a'], kinds=['text'],
    captions=['b'],
  )  # fmt: skip


def _other_zip(path):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme.txt', 'hello')


def _other_parquet(path):
  pyarrow.parquet.write_table(pyarrow.table({'id': ['a']}), path)


@pytest.mark.parametrize(
  'name, make, message',
  [
    ('e.csv', lambda path: path.touch(), 'neither an .npz nor a .parquet'),
    ('e.npz', lambda path: None, 'does not exist'),
    ('e.npz', lambda path: path.mkdir(), 'is a folder'),
    ('e.npz', lambda path: path.write_text('junk'), 'neither an .npz nor'),
    ('e.npz', _truncated, 'no whole zip archive'),
    ('e.npz', _compressed, 'is compressed'),
    ('e.npz', _without_ids, "has no array 'ids'"),
    ('e.npz', _pickled, 'is an array of object'),
    ('e.npz', _lying, 'damaged'),
    ('e.npz', _garbled, 'damaged'),
    ('e.npz', _of_integers, 'not float32'),
    ('e.npz', _other_zip, 'not a table of embeddings'),
    ('e.parquet', lambda path: path.write_text('junk'), 'damaged'),
    ('e.parquet', _truncated, 'damaged'),
    ('e.parquet', _other_parquet, "has no column 'kind'"),
  ],
)
def test_other_files_are_one_line(tmp_path, name, make, message):
  path = tmp_path / name
  make(path)
  with pytest.raises(UsageError, match=message) as error:
    open_embeddings(path)
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'about',
  [
    {'images': 3},
    {'captions': 'caption'},
    {'captions': [3]},
    {'corrupt': []},
    {'truncated': 'many'},
  ],
)
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_what_made_it_is_checked(tmp_path, suffix, about):
  path = write_table(tmp_path / f'e{suffix}', unit_rows(0, 3), about=about)
  with pytest.raises(UsageError, match='the field'):
    open_embeddings(path)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_feature_that_is_no_number_is_named(tmp_path, suffix, value):
  rows = unit_rows(0, 5)
  rows[3, 2] = value
  path = write_table(tmp_path / f'e{suffix}', rows)
  with (
    open_embeddings(path) as table,
    pytest.raises(FailureError, match=r'row 3 \(3\.png\): a feature'),
  ):
    search_table(table, unit_rows(1, 2))


@pytest.mark.parametrize('column', ['id', 'kind', 'caption', 'embedding'])
def test_a_row_of_parquet_without_a_value_is_damage(tmp_path, column):
  rows = {
    'id': ['a', 'b'], 'kind': ['image'] * 2, 'caption': ['', ''],
    'embedding': [[1.0, 0.0]] * 2,
  }  # fmt: skip
  rows[column][1] = None
  vector = pyarrow.list_(pyarrow.float32(), 2)
  arrays = {
    name: pyarrow.array(x, vector if name == 'embedding' else pyarrow.string())
    for name, x in rows.items()
  }
  pyarrow.parquet.write_table(pyarrow.table(arrays), tmp_path / 'e.parquet')
  with (
    open_embeddings(tmp_path / 'e.parquet') as table,
    pytest.raises(FailureError, match=f'{column}.* without a value'),
  ):
    list(table.chunks())
    table.entries([0, 1])


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'e.npz')
  with pytest.raises(UsageError, match='is a pipe or a device'):
    open_embeddings(tmp_path / 'e.npz')
