"""Searches a table of embeddings by texts and images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.inference.dedup import fold
from clip_jax.inference.embeddings_table import EmbeddingsTable
from clip_jax.inference.identity import model_identity
from clip_jax.inference.model import Model
from clip_jax.inference.nearest import Nearest


class Query(NamedTuple):
  """The query of a search: a text, or the path of an image."""

  value: str
  is_image: bool


@dataclasses.dataclass(frozen=True)
class Match:
  """A row of the embeddings that is similar to a query.

  Attributes:
    rank: from 1.
    row: its index in the table of embeddings.
    id, kind, caption: see `embeddings_table`.
    similarity: cosine, with the query.
    copies: ids of rows that are nearly the same, and not shown.
  """

  rank: int
  row: int
  id: str
  kind: str
  caption: str
  similarity: float
  copies: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class QueryResult:
  """A query and its matches, the most similar first.

  Attributes:
    query: the text, or the path of the image.
    is_image: which of them the query is.
    matches: may not be empty.
  """

  query: str
  is_image: bool
  matches: list[Match]


def check_model(model: Model, table: EmbeddingsTable) -> None:
  """Refuses a model that is not the one that made a table.

  Raises:
    UsageError: its dimensions, its weights, or how it computes with them are
      others than the table says.
  """
  origin = table.about.get('origin')
  named = f', {origin}' if origin else ''
  if model.config.embed_dim != table.dims:
    raise UsageError(
      f'the model makes {model.config.embed_dim} dimensions, and {table.path} '
      f'has {table.dims}: use the model that made it{named}.'
    )
  identity, about = model_identity(model), table.about
  if any(
    about.get(field) not in (None, identity[field])  # None: it does not say
    for field in ('model', 'batch_stats', 'config')
  ):
    by = 'another model'
    if about.get('model') == identity['model']:
      by = 'these weights with other settings (activation, heads, …)'
    raise UsageError(
      f'{table.path} was made by {by}{named}: use that one, or embed again.'
    )


def encode_queries(
  model: Model, queries: Sequence[Query]
) -> Float[np.ndarray, 'Q E']:
  """Returns rows of unit length, float32, in the order of the queries.

  The model's tokenizer counts the texts that it truncates.
  """
  vectors = np.empty((len(queries), model.config.embed_dim), np.float32)
  images = [i for i, (_, is_image) in enumerate(queries) if is_image]
  texts = [i for i, (_, is_image) in enumerate(queries) if not is_image]
  if images:
    vectors[images] = model.encode_image([queries[i][0] for i in images])
  if texts:
    vectors[texts] = model.encode_text([queries[i][0] for i in texts])
  return vectors


def find_matches(
  table: EmbeddingsTable,
  queries: Sequence[Query],
  nearest: Callable[[int], Nearest],
  *,
  rows: int,
  top: int,
  fold_above: float | None,
) -> list[QueryResult]:
  """Returns the results to show, each with `top` different images or texts.

  Copies are folded into one result, so more rows are looked for until enough
  results are left.

  Args:
    table: where the rows lie.
    queries: Q of them.
    nearest: finds, for each query, so many nearest rows.
    rows: how many rows are searched.
    top: results of each query.
    fold_above: the cosine from which rows of one caption are copies; None
      shows all of them.
  """
  count = top
  while True:
    nearest_rows = nearest(count)
    unique = sorted(set(nearest_rows.rows.ravel().tolist()))
    entries = table.entries(unique)
    vectors = dict(zip(unique, table.vectors(unique), strict=True))
    results = []
    for (query, is_image), its_rows, similarities in zip(
      queries,
      nearest_rows.rows.tolist(),
      nearest_rows.similarities.tolist(),
      strict=True,
    ):
      groups = [[i] for i in range(len(its_rows))]
      if fold_above is not None:
        # Rows of different captions are different results, however similar.
        captions = [entries[row].caption.casefold() for row in its_rows]
        stacked = np.stack([vectors[row] for row in its_rows])
        groups = fold(stacked, captions, fold_above, top=top)
      matches = [
        Match(
          rank,
          its_rows[first],
          *entries[its_rows[first]],
          similarities[first],
          tuple(entries[its_rows[copy]].id for copy in copies),
        )
        for rank, (first, *copies) in enumerate(groups[:top], 1)
      ]
      results.append(QueryResult(query, is_image, matches))
    if count >= rows or min(len(x.matches) for x in results) >= top:
      return results
    count *= 4
