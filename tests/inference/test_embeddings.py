"""Tables of embeddings on disk: written block by block."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import embeddings
from clip_jax.inference.embeddings import Extent, check_extent, check_path
from tests.inference.tables import unit_rows, write_table

IDS = ['a.png', 'Größe/ü.png', '😀']
CAPTIONS = ['', 'two\nlines', 'x' * 3000]


def test_npz_is_what_numpy_reads_without_pickles(tmp_path):
  rows = unit_rows(0, 3)
  path = write_table(
    tmp_path / 'e.npz', rows, ids=IDS, captions=CAPTIONS, block=2
  )
  with np.load(path) as file:
    assert file['ids'].tolist() == IDS
    assert file['kinds'].tolist() == ['image'] * 3
    assert file['captions'].tolist() == CAPTIONS
    assert file['embeddings'].dtype == np.float32
    np.testing.assert_array_equal(file['embeddings'], rows)


def test_parquet_has_a_vector_a_row(tmp_path):
  rows = unit_rows(0, 3)
  path = write_table(
    tmp_path / 'e.parquet', rows, ids=IDS, captions=CAPTIONS, block=2
  )
  table = pyarrow.parquet.read_table(path).to_pydict()
  assert table['id'] == IDS
  assert table['caption'] == CAPTIONS
  np.testing.assert_array_equal(np.float32(table['embedding']), rows)


def test_parquet_has_groups_of_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(embeddings, '_GROUP_BYTES', 25 * 16 * 4)
  rows = unit_rows(0, 60)
  path = write_table(tmp_path / 'e.parquet', rows, block=10)
  file = pyarrow.parquet.ParquetFile(path)
  groups = range(file.num_row_groups)
  assert [file.metadata.row_group(i).num_rows for i in groups] == [30, 30]
  assert file.read()['id'].to_pylist() == [f'{i}.png' for i in range(60)]


@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
def test_the_same_rows_are_the_same_bytes_however_they_come(tmp_path, suffix):
  rows = unit_rows(0, 50)
  one = write_table(tmp_path / f'one{suffix}', rows, block=50)
  other = write_table(tmp_path / f'other{suffix}', rows, block=7)
  assert one.read_bytes() == other.read_bytes()


def test_names_that_are_not_utf8_are_kept_readable_in_parquet(tmp_path):
  name = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
  path = write_table(tmp_path / 'e.parquet', unit_rows(0, 1), ids=[name])
  table = pyarrow.parquet.read_table(path)
  assert table['id'].to_pylist() == ['caf\\udce9.png']


def test_long_strings_are_refused_in_an_npz_only():
  extent = Extent(rows=1_000_000, dims=512, id_width=20, caption_width=100_000)
  with pytest.raises(FailureError, match=r'372\.6 GiB .* e\.parquet') as error:
    check_extent(Path('e.npz'), extent)
  assert '\n' not in str(error.value)
  check_extent(Path('e.parquet'), extent)
  check_extent(Path('e.npz'), Extent(1_000_000, 512, 20, 1000))


def test_checking_a_path_leaves_nothing_behind(tmp_path):
  check_path(tmp_path / 'e.npz')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UsageError, match='is a folder'):
    (tmp_path / 'f.npz').mkdir()
    check_path(tmp_path / 'f.npz')
