"""Files of embeddings are written and opened, and other files are refused."""

import os
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.embeddings import SUFFIXES, check_path, open_embeddings
from clip_jax.inference.nearest_in_table import search_table
from tests.inference.tables import unit_rows, write_table


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_the_same_rows_are_the_same_bytes_however_they_come(tmp_path, suffix):
  rows = unit_rows(0, 50)
  one = write_table(tmp_path / f'one{suffix}', rows, block=50)
  other = write_table(tmp_path / f'other{suffix}', rows, block=7)
  assert one.read_bytes() == other.read_bytes()


def test_checking_a_path_leaves_nothing_behind(tmp_path):
  check_path(tmp_path / 'e.npz')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UsageError, match='is a folder'):
    (tmp_path / 'f.npz').mkdir()
    check_path(tmp_path / 'f.npz')


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


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'e.npz')
  with pytest.raises(UsageError, match='is a pipe or a device'):
    open_embeddings(tmp_path / 'e.npz')
