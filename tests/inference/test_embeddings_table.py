"""Tables of embeddings read back, some rows at a time, in either format."""

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.inference import embeddings_parquet, embeddings_table
from clip_jax.inference.embeddings import SUFFIXES, open_embeddings
from clip_jax.inference.embeddings_table import Entry
from tests.inference.tables import unit_rows, write_table

KINDS = ['image', 'image', 'text'] * 20


@pytest.fixture(params=SUFFIXES)
def table(request, tmp_path, monkeypatch):
  """Sixty rows, read seven at a time."""
  monkeypatch.setattr(embeddings_parquet, '_GROUP_BYTES', 25 * 16 * 4)
  monkeypatch.setattr(embeddings_table, '_CHUNK_BYTES', 7 * 16 * 4)
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
