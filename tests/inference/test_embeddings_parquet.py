"""Tables of embeddings as Parquet, which pyarrow reads too."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clip_jax.errors import FailureError
from clip_jax.inference import embeddings_parquet
from clip_jax.inference.embeddings import open_embeddings
from tests.inference.tables import unit_rows, write_table

IDS = ['a.png', 'Größe/ü.png', '😀']
CAPTIONS = ['', 'two\nlines', 'x' * 3000]


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
  monkeypatch.setattr(embeddings_parquet, '_GROUP_BYTES', 25 * 16 * 4)
  rows = unit_rows(0, 60)
  path = write_table(tmp_path / 'e.parquet', rows, block=10)
  file = pyarrow.parquet.ParquetFile(path)
  groups = range(file.num_row_groups)
  assert [file.metadata.row_group(i).num_rows for i in groups] == [30, 30]
  assert file.read()['id'].to_pylist() == [f'{i}.png' for i in range(60)]


def test_names_that_are_not_utf8_are_kept_readable_in_parquet(tmp_path):
  name = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
  path = write_table(tmp_path / 'e.parquet', unit_rows(0, 1), ids=[name])
  table = pyarrow.parquet.read_table(path)
  assert table['id'].to_pylist() == ['caf\\udce9.png']


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
