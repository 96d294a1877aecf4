"""What is searched for, as it is typed: texts and pictures."""

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from clip_jax.commands import printing
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  import numpy as np

  from clip_jax.inference.model import Model


class Query(NamedTuple):
  """A text, or a picture's path."""

  value: str
  is_picture: bool


def define(values: flags.FlagValues) -> None:
  """--text, --image and --queries."""
  flags.DEFINE_multi_string(
    'text', [], 'a text, whatever it looks like', flag_values=values
  )
  flags.DEFINE_multi_string(
    'image', [], "a picture's path, whatever it ends in", flag_values=values
  )
  flags.DEFINE_string(
    'queries', None, 'a UTF-8 file with one text a line', flag_values=values
  )


def queries_of(values: flags.FlagValues, words: list[str]) -> list[Query]:
  """All queries: words, then --text, --image, and --queries.

  Raises:
    UsageError: there is none, one is empty, or a picture is not there.
  """
  queries = []
  files = [values.queries] if values.queries else []
  for word in words:
    if word == '-':
      files.append('-')
    elif _looks_like_a_picture(word):
      if not os.path.isfile(word):
        raise UsageError(
          f'no picture {word}: to search for the words, use --text={word!r}.'
        )
      queries.append(Query(word, True))
    else:
      queries.append(Query(word, False))
  queries += [Query(text, False) for text in values.text]
  for path in values.image:
    if not os.path.isfile(path):
      raise UsageError(f'--image: no picture {path}.')
    queries.append(Query(path, True))
  for file in files:
    path = '/dev/stdin' if file == '-' else file
    lines = printing.lines_of('queries', path)
    queries += [Query(text, False) for text in lines]
  if not queries:
    raise UsageError(
      'nothing to search for: give a text or a picture after the flags.'
    )
  if any(not query.value.strip() for query in queries):
    raise UsageError('a query is empty: give a text or a picture.')
  return queries


def _looks_like_a_picture(word: str) -> bool:
  from clip_jax.data.sources.folder import IMAGE_SUFFIXES

  return word.lower().endswith(IMAGE_SUFFIXES)


def encode(model: 'Model', queries: list[Query]) -> 'np.ndarray':
  """Unit-length rows in the order of the queries."""
  import numpy as np

  vectors = np.empty((len(queries), model.config.embed_dim), np.float32)
  pictures = [i for i, query in enumerate(queries) if query.is_picture]
  texts = [i for i, query in enumerate(queries) if not query.is_picture]
  if pictures:
    vectors[pictures] = model.encode_image([queries[i].value for i in pictures])
  if texts:
    before = model.tokenizer.truncated
    vectors[texts] = model.encode_text([queries[i].value for i in texts])
    cut = model.tokenizer.truncated - before
    if cut:
      print(
        f'{cut:,} of {len(texts):,} queries were cut to '
        f'{model.tokenizer.context_length} tokens.',
        file=sys.stderr,
      )
  return vectors
