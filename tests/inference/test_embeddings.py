"""Tables of embeddings on disk: written block by block."""

import numpy as np
import pyarrow.parquet
import pytest

from clip_jax.errors import UsageError
from clip_jax.inference import embeddings
from clip_jax.inference.embeddings import check_path
from clip_jax.inference.embeddings_reader import open_embeddings
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


def test_one_long_text_does_not_make_a_large_npz(tmp_path):
  rows = unit_rows(0, 300)
  names = [*(f'{i}.png' for i in range(299)), 'Größe' * 30_000]
  texts = [*(f'caf\u00e9 \udce9 {i}' for i in range(298)), '', 'ü' * 1_000_000]
  path = write_table(
    tmp_path / 'e.npz', rows, ids=names, captions=texts, block=70
  )
  assert path.stat().st_size < 10e6  # 1.8 GB if all were as wide
  with np.load(path, allow_pickle=False) as file:
    assert 'captions' not in file.files  # over a GiB for numpy
    assert file['ids'].tolist() == names
    data, ends = file['captions_utf8'].tobytes(), file['captions_offsets']
    for row in (0, 298, 299):
      text = data[ends[row] : ends[row + 1]].decode('utf-8', 'surrogatepass')
      assert text == texts[row]
  with open_embeddings(path) as table:
    result = table.entries([0, 298, 299])
    assert [result[i].caption for i in result] == [texts[0], '', texts[299]]
    assert result[299].id == names[299]
    assert [x for part in table.contents() for x in part.ids] == names


def test_usual_captions_are_as_numpy_has_them(tmp_path):
  texts = ['x' * 2000, *['a short caption'] * 3999]
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 4000), captions=texts)
  with np.load(path, allow_pickle=False) as file:
    assert set(file.files) == {
      'about', 'ids', 'kinds', 'captions', 'digests', 'embeddings'
    }  # fmt: skip
    assert file['captions'].tolist() == texts


def test_checking_a_path_leaves_nothing_behind(tmp_path):
  check_path(tmp_path / 'e.npz')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UsageError, match='is a folder'):
    (tmp_path / 'f.npz').mkdir()
    check_path(tmp_path / 'f.npz')
