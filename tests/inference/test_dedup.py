"""Copies among rows: exact, near, and never a chain of them."""

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.inference import dedup
from clip_jax.inference.dedup import exact_copies, fold, near_copies
from clip_jax.inference.embeddings import open_embeddings
from tests.inference.tables import unit_rows, write_table


def at(*degrees):
  """Unit rows in a plane."""
  angles = np.radians(degrees)
  return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def none_of(count):
  return exact_copies(i.to_bytes(2, 'big') for i in range(count))


def find_copies(path, vectors, threshold, exact=None):
  write_table(path, vectors)
  with open_embeddings(path) as table:
    every = range(table.rows)
    return near_copies(table, every, exact or none_of(len(every)), threshold)


def test_exact_copies_are_of_the_first():
  copies = exact_copies([b'a', b'b', b'a', b'c', b'b', b'a'])
  assert copies.of.tolist() == [0, 1, 0, 3, 1, 0]
  assert copies.groups() == {0: [2, 5], 1: [4]}
  assert copies.kept.tolist() == [0, 1, 3]
  assert exact_copies([]).groups() == {}


@pytest.mark.parametrize('suffix', ['.npz', '.parquet'])
@pytest.mark.parametrize('tile', [2, 2048])
def test_a_copy_is_near_what_is_kept(tmp_path, monkeypatch, suffix, tile):
  monkeypatch.setattr(dedup, '_TILE', tile)
  # A chain of steps of 5 degrees: the third is 10 from the first.
  vectors = at(0, 5, 10, 15, 90, 0, 92)
  copies = find_copies(tmp_path / f'e{suffix}', vectors, np.cos(np.radians(6)))
  assert copies.groups() == {0: [1, 5], 2: [3], 4: [6]}
  assert copies.similarity[5] == pytest.approx(1)
  assert not copies.exact.any()


def test_exact_copies_go_where_their_first_goes(tmp_path):
  exact = exact_copies([b'a', b'b', b'c', b'b'])
  copies = find_copies(tmp_path / 'e.npz', at(0, 1, 90, 1), 0.99, exact)
  assert copies.groups() == {0: [1, 3]}
  assert copies.exact.tolist() == [False] * 4  # of another content than 0
  apart = find_copies(tmp_path / 'e.npz', at(0, 30, 90, 30), 0.99, exact)
  assert apart.groups() == {1: [3]}
  assert apart.exact.tolist() == [False, False, False, True]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.8, 0.95]))
def test_what_is_kept_is_apart_and_what_is_not_is_near(seed, threshold):
  vectors = unit_rows(seed, 80, 4, clusters=10)
  with tempfile.TemporaryDirectory() as folder:
    copies = find_copies(Path(folder) / 'e.npz', vectors, threshold)
  kept = copies.kept
  among = vectors[kept] @ vectors[kept].T - 2 * np.eye(len(kept))
  assert among.max() < threshold
  for row, of in enumerate(copies.of.tolist()):
    assert of <= row
    assert copies.of[of] == of
    similarity = vectors[row] @ vectors[of]
    assert row == of or similarity >= threshold - 1e-4
    assert copies.similarity[row] == pytest.approx(similarity, abs=1e-4)


def test_folding_keeps_the_order_and_different_words_apart():
  vectors = at(0, 90, 1, 91, 0.5, 2)
  words = ['a', 'b', 'a', 'c', 'a', 'a']
  near = np.cos(np.radians(1.5))
  groups = [[0, 2, 4], [1], [3], [5]]
  for top in range(1, 6):
    assert fold(vectors, words, near, top=top) == groups[:top]
  assert fold(vectors, ['x'] * 6, near, top=9) == [[0, 2, 4], [1, 3], [5]]


def test_folding_many_rows_takes_memory_for_each_and_not_for_pairs():
  vectors = at(*np.linspace(0, 1, 20_000), 90)
  tracemalloc.start()
  groups = fold(vectors, ['x'] * 20_001, 0.999, top=10)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert groups == [[*range(20_000)], [20_000]]
  assert peak < 20e6  # of pairs, 1.6 GB
