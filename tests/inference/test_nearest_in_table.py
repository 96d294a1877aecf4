"""The index: how much it finds, and when it is built again."""

import os
import sys

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.inference import nearest_in_table
from clip_jax.inference.embeddings import SUFFIXES, open_embeddings
from clip_jax.inference.nearest_in_table import ApproximateIndex, search_table
from tests.inference.tables import unit_rows, write_table

pytest.importorskip('usearch')


@pytest.fixture
def said():
  return []


@pytest.fixture
def open_index(said):
  def open_index(path, kind=None):
    table = open_embeddings(path)
    return table, ApproximateIndex(table, kind, say=said.append)

  return open_index


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_it_finds_nearly_all_of_the_nearest(tmp_path, open_index, suffix):
  path = write_table(
    tmp_path / f'e{suffix}', unit_rows(0, 8000, 64, clusters=50), block=1000
  )
  queries = unit_rows(1, 100, 64, clusters=50)
  table, index = open_index(path)
  exact, result = (
    search_table(table, queries, top=10),
    index.search(queries, top=10),
  )
  shared = [
    len(set(one) & set(other)) / 10
    for one, other in zip(
      exact.rows.tolist(), result.rows.tolist(), strict=True
    )
  ]
  assert np.mean(shared) >= 0.95
  best = (exact.rows[:, 0] == result.rows[:, 0]).nonzero()
  np.testing.assert_allclose(
    result.similarities[best, 0], exact.similarities[best, 0], atol=1e-5
  )
  assert (np.diff(result.similarities) <= 0).all()


def test_one_kind_of_several_has_its_own_file(tmp_path, open_index, said):
  kinds = ['image', 'text'] * 50
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 100), kinds=kinds)
  _, index = open_index(path, 'text')
  assert index.path.name == 'e.npz.text.usearch'
  rows = index.search(unit_rows(1, 3), top=20).rows
  assert (rows % 2 == 1).all()
  _, index = open_index(path)
  assert index.path.name == 'e.npz.usearch'
  assert index.rows == 100
  assert len(said) == 2


@pytest.mark.parametrize('queries', [1, 2])
def test_where_it_finds_too_few_the_search_is_exact(
  tmp_path, open_index, monkeypatch, queries
):
  monkeypatch.setattr(nearest_in_table, '_CONNECTIVITY', 2)
  monkeypatch.setattr(nearest_in_table, '_EXPANSION_ADD', 2)
  vectors = unit_rows(0, 3000, 4)
  vectors[:2000] = vectors[0]  # the graph falls apart
  path = write_table(tmp_path / 'e.npz', vectors, block=1000)
  table, index = open_index(path)
  asked = vectors[[0, 2500]][:queries]
  exact = search_table(table, asked, top=2900)
  result = index.search(asked, top=2900)
  np.testing.assert_array_equal(result.rows, exact.rows)
  np.testing.assert_array_equal(result.similarities, exact.similarities)


def test_it_is_built_once(tmp_path, open_index, said):
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 100))
  _, index = open_index(path, 'image')
  assert 'e.npz.usearch of 100 rows: there is none yet' in said[0]
  before = index.path.stat().st_mtime_ns
  first = index.search(unit_rows(1, 5))
  _, index = open_index(path, 'image')
  assert len(said) == 1
  assert index.path.stat().st_mtime_ns == before
  np.testing.assert_array_equal(index.search(unit_rows(1, 5)).rows, first.rows)
  assert sorted(os.listdir(tmp_path)) == [
    'e.npz', 'e.npz.usearch', 'e.npz.usearch.json'
  ]  # fmt: skip


def test_a_stale_one_is_built_again(tmp_path, open_index, said):
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 100))
  open_index(path)
  write_table(path, unit_rows(5, 100))
  table, index = open_index(path)
  assert 'the table has changed' in said[-1]
  queries = unit_rows(1, 5)
  np.testing.assert_array_equal(
    index.search(queries, top=1).rows, search_table(table, queries, top=1).rows
  )


def test_a_damaged_one_is_built_again(tmp_path, open_index, said):
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 100))
  index, about = tmp_path / 'e.npz.usearch', tmp_path / 'e.npz.usearch.json'
  open_index(path)
  index.write_bytes(index.read_bytes()[:1000])
  open_index(path)
  assert 'the old one is damaged' in said[-1]
  damaged = bytearray(index.read_bytes())
  damaged[200:1200] = b'\xff' * 1000  # of the right size
  index.write_bytes(damaged)
  open_index(path)
  assert 'the old one is damaged' in said[-1]
  about.write_text('{')
  open_index(path)
  assert 'description of the old one is damaged' in said[-1]
  about.unlink()  # as a kill leaves it
  open_index(path)
  assert 'there is none yet' in said[-1]
  assert len(said) == 5


def test_without_usearch_the_extra_is_named(
  tmp_path, open_index, said, monkeypatch
):
  path = write_table(tmp_path / 'e.npz', unit_rows(0, 10))
  monkeypatch.setitem(sys.modules, 'usearch.index', None)
  with pytest.raises(UsageError, match=r'pip install "\.\[search\]"'):
    open_index(path)
  assert not said
  assert os.listdir(tmp_path) == ['e.npz']
