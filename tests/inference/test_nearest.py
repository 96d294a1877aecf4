"""The nearest rows, against a plain sort of all similarities."""

import tracemalloc

import numpy as np
import pytest

from clip_jax.inference import embeddings_table, nearest, nearest_in_table
from clip_jax.inference.embeddings import SUFFIXES, open_embeddings
from tests.inference.tables import unit_rows, write_table


def plain(rows, queries, top, wanted=None):
  similarities = queries @ rows.T
  if wanted is not None:
    similarities = np.where(wanted, similarities, -2)
  return np.argsort(-similarities, axis=1, kind='stable')[:, :top]


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('kind', [None, 'image', 'text'])
def test_the_nearest_are_those_of_a_plain_sort(
  tmp_path, suffix, kind, monkeypatch
):
  monkeypatch.setattr(embeddings_table, '_CHUNK_BYTES', 7 * 16 * 4)
  monkeypatch.setattr(nearest_in_table, '_QUERIES', 3)
  rows, queries = unit_rows(0, 100), unit_rows(1, 8)
  kinds = ['image' if i % 3 else 'text' for i in range(100)]
  path = write_table(tmp_path / f'e{suffix}', rows, kinds=kinds)
  with open_embeddings(path) as table:
    result = nearest_in_table.search_table(table, queries, kind=kind, top=5)
  wanted = None if kind is None else np.array(kinds) == kind
  expected = plain(rows, queries, 5, wanted)
  np.testing.assert_array_equal(result.rows, expected)
  similarities = np.take_along_axis(queries @ rows.T, expected, 1)
  np.testing.assert_allclose(result.similarities, similarities, atol=1e-6)
  assert result.similarities.dtype == np.float32


def test_equals_come_in_the_order_of_the_table(tmp_path, monkeypatch):
  monkeypatch.setattr(embeddings_table, '_CHUNK_BYTES', 9 * 16 * 4)
  axes = np.eye(16, dtype=np.float32)  # products without rounding
  path = write_table(tmp_path / 'e.npz', axes[[1, 0, 2] * 10])
  with open_embeddings(path) as table:
    result = nearest_in_table.search_table(table, axes[:1], top=6)
  assert result.rows.tolist() == [[1, 4, 7, 10, 13, 16]]


def test_a_small_table_gives_all_it_has(tmp_path):
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 4))
  with open_embeddings(path) as table:
    result = nearest_in_table.search_table(table, unit_rows(1, 2), top=10)
  assert result.rows.shape == (2, 4)
  assert sorted(result.rows[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_memory_does_not_grow_with_the_table(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(embeddings_table, '_CHUNK_BYTES', 2**20)
  peaks = []
  for count in (10_000, 80_000):  # 2.5 and 20 MB
    path = write_table(
      tmp_path / f'{count}{suffix}', unit_rows(0, count, 64), block=5000
    )
    with open_embeddings(path) as table:
      tracemalloc.start()
      nearest_in_table.search_table(table, unit_rows(1, 4, 64), top=10)
      peaks.append(tracemalloc.get_traced_memory()[1])
      tracemalloc.stop()
  assert peaks[1] < 1.5 * peaks[0] < 12e6


def test_the_nearest_rows_of_an_array_are_those_of_a_full_sort(monkeypatch):
  monkeypatch.setattr(nearest, '_QUERIES', 4)
  monkeypatch.setattr(nearest, '_ROWS', 7)
  queries, rows = unit_rows(2, 9), unit_rows(3, 40)
  result = nearest.nearest_rows(queries, rows, k=5)
  np.testing.assert_array_equal(result.rows, plain(rows, queries, 5))
  values = -np.sort(-(queries @ rows.T))[:, :5]
  np.testing.assert_allclose(result.similarities, values, atol=1e-6)
  assert nearest.nearest_rows(queries, rows[:3], k=5).rows.shape == (9, 3)
  assert nearest.nearest_rows(queries[:0], rows, k=5).rows.shape == (0, 5)


@pytest.mark.parametrize('passes', [0, 64])  # by a partition, or by passes
def test_equal_numbers_are_in_the_order_of_their_columns(monkeypatch, passes):
  monkeypatch.setattr(nearest, '_PASSES', passes)
  rng = np.random.default_rng(0)
  for k in (1, 3, 8, 20):
    numbers = rng.integers(0, 4, (50, 13)).astype(np.float32)
    expected = np.argsort(-numbers, axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(nearest.top_k(numbers, k), expected)
