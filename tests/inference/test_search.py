"""Queries find the rows that are like them, and copies are shown once."""

import dataclasses

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.inference.embeddings import open_embeddings
from clip_jax.inference.identity import model_identity
from clip_jax.inference.model import Model
from clip_jax.inference.nearest import nearest_rows
from clip_jax.inference.search import (
  Query,
  check_model,
  encode_queries,
  find_matches,
)
from tests.inference.tables import unit_rows, write_table
from tests.tiny import TINY


class AxisModel(Model):
  """Encodes a text or an image as the axis that it is the number of."""

  config, variables = dataclasses.replace(TINY, embed_dim=4), None
  origin, step = None, None

  def __init__(self, weight=1.0, **image):
    self.variables = {'params': {'w': np.full(3, weight, np.float32)}}
    image = dataclasses.replace(self.config.image, **image)
    self.config = dataclasses.replace(self.config, image=image)

  def encode_text(self, texts):
    return np.eye(4, dtype=np.float32)[[int(text) for text in texts]]

  def encode_image(self, paths):
    return -self.encode_text([path.removesuffix('.png') for path in paths])


def table_of(tmp_path, vectors, **fields):
  return open_embeddings(write_table(tmp_path / 'e.npz', vectors, **fields))


def search(table, queries, top, fold_above=None):
  """The matches of each query, and for how many nearest rows was asked."""
  counts = []
  vectors = table.vectors(range(table.rows))

  def nearest(count):
    counts.append(count)
    features = encode_queries(AxisModel(), queries)
    return nearest_rows(features, vectors, k=count)

  results = find_matches(
    table, queries, nearest, rows=table.rows, top=top, fold_above=fold_above
  )
  return results, counts


def test_queries_are_encoded_by_their_kind_and_stay_in_order():
  queries = [Query('1', False), Query('2.png', True), Query('0', False)]
  vectors = encode_queries(AxisModel(), queries)
  axes = np.eye(4, dtype=np.float32)
  np.testing.assert_array_equal(vectors, [axes[1], -axes[2], axes[0]])
  assert vectors.dtype == np.float32


def test_matches_say_what_their_rows_are(tmp_path):
  with table_of(
    tmp_path,
    np.eye(4, dtype=np.float32),
    kinds=['image', 'image', 'text', 'text'],
  ) as table:
    (first, second), counts = search(
      table, [Query('2', False), Query('0.png', True)], 2
    )
  assert counts == [2]
  assert (first.query, first.is_image) == ('2', False)
  best = first.matches[0]
  assert (best.rank, best.row, best.id, best.kind) == (1, 2, '2.png', 'text')
  assert (best.caption, best.similarity, best.copies) == ('caption 2', 1.0, ())
  assert second.is_image
  assert [match.rank for match in second.matches] == [1, 2]
  assert 0 not in [match.row for match in second.matches]  # its opposite


def test_more_rows_are_searched_until_enough_differ(tmp_path):
  copies, other = np.eye(4, dtype=np.float32)[[0] * 9], np.array([[0.6, 0.8]])
  vectors = np.concatenate([copies, np.pad(other, ((0, 0), (0, 2)))])
  with table_of(
    tmp_path, vectors.astype(np.float32), captions=['a'] * 10
  ) as table:
    (result,), counts = search(table, [Query('0', False)], 2, fold_above=0.99)
    assert counts == [2, 8, 32]
    assert [match.row for match in result.matches] == [0, 9]
    assert result.matches[0].copies == tuple(f'{i}.png' for i in range(1, 9))
    (unfolded,), counts = search(table, [Query('0', False)], 2)
    assert counts == [2]
    assert [match.row for match in unfolded.matches] == [0, 1]


def test_rows_of_different_captions_are_different_results(tmp_path):
  vectors = np.eye(4, dtype=np.float32)[[0, 0, 0]]
  with table_of(tmp_path, vectors, captions=['Dog', 'cat', 'dog']) as table:
    (result,), _ = search(table, [Query('0', False)], 3, fold_above=0.99)
  assert [match.caption for match in result.matches] == ['Dog', 'cat']
  assert result.matches[0].copies == ('2.png',)


def test_another_model_than_the_tables_is_refused(tmp_path):
  about = {**model_identity(AxisModel()), 'origin': 'runs/emoji'}
  with table_of(tmp_path, unit_rows(0, 3, 4), about=about) as table:
    check_model(AxisModel(), table)
    with pytest.raises(UsageError, match='by another model, runs/emoji: use'):
      check_model(AxisModel(2.0), table)
    for change in ({'activation': 'gelu'}, {'heads': 2}):
      with pytest.raises(UsageError, match=r'with other settings .*, runs/em'):
        check_model(AxisModel(**change), table)
  del about['config'], about['batch_stats']  # as earlier versions wrote it
  with table_of(tmp_path, unit_rows(0, 3, 4), about=about) as table:
    check_model(AxisModel(activation='gelu'), table)
  with (
    table_of(tmp_path, unit_rows(0, 3, 8)) as table,
    pytest.raises(UsageError, match=r'makes 4 dimensions, .* has 8: use'),
  ):
    check_model(AxisModel(), table)
