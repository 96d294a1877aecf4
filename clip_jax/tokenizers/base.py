"""The base of tokenizers: lays out rows, truncates, and describes itself.

Shapes: N texts, T tokens of a row (the context length).
"""

import abc
import threading
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int32

from clip_jax.errors import UsageError

DEFAULT_CONTEXT_LENGTH = 77  # the paper's, section 2.4
# Several times the longest of any published text tower (8,192). A file that
# claims more would have memory allocated by the gigabyte.
MAX_CONTEXT_LENGTH = 65_536
# Ids from 0. The largest published vocabulary has about a million; libraries
# count through all ids up to the highest.
MAX_VOCABULARY = 2**22


class Tokenizer(abc.ABC):
  """Texts to int32 rows [N, T], and back.

  A row is [bos] ids eos pad…; bos only where the tokenizer has one, and the
  pads come first where a file says so. A text that is too long keeps its first
  tokens and its last, the eos that a text tower reads at, and is counted in
  `truncated`. Threads may share one; a pickled copy counts anew.
  """

  kind: str  # as in `describe()`
  context_length: int  # T
  vocab_size: int
  bos_id: int | None
  eos_id: int
  pad_id: int
  padding_side = 'right'

  def __init__(self, context_length: int | None):
    length = (
      DEFAULT_CONTEXT_LENGTH if context_length is None else context_length
    )
    whole = isinstance(length, int) and not isinstance(length, bool)
    if not whole or not 1 <= length <= MAX_CONTEXT_LENGTH:
      raise UsageError(
        f'a context length of {length!r}: it takes a whole number from 1 to '
        f'{MAX_CONTEXT_LENGTH:,}.'
      )
    self.context_length = length
    self.truncated = 0
    self._lock = threading.Lock()

  def __call__(self, texts: str | Iterable[str]) -> Int32[np.ndarray, 'N T']:
    """Returns rows of ids; one text is a batch of one.

    Raises:
      UsageError: something in `texts` is not a string.
    """
    ids, lengths = self._tokenize(_as_list(texts))
    width = self.context_length
    inside = np.arange(width) < lengths[:, None]  # N T
    if self.padding_side == 'left':
      inside = inside[:, ::-1]
    rows = np.full(inside.shape, self.pad_id, np.int32)
    truncated = lengths > width  # N
    if truncated.any():
      ends = np.cumsum(lengths)  # N
      token_index = np.arange(len(ids)) - np.repeat(
        ends - lengths, lengths
      )  # M
      rows[inside] = ids[token_index < width]
      rows[truncated, -1] = ids[ends[truncated] - 1]
      with self._lock:
        self.truncated += int(truncated.sum())
    else:
      rows[inside] = ids  # both row by row
    return rows

  def text_lengths(self, texts: str | Iterable[str]) -> Int32[np.ndarray, ' N']:
    """Returns how many tokens each text has, specials too, if not truncated."""
    return self._tokenize(_as_list(texts))[1].astype(np.int32)

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the ids of one text, without specials and not truncated."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text of one row, or of a part of one.

    Raises:
      UsageError: an id outside the vocabulary.
    """

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """Returns all that `from_description` needs, as JSON: no file, no path."""

  @classmethod
  @abc.abstractmethod
  def from_description(cls, description: Mapping[str, Any]) -> 'Tokenizer':
    """Returns the tokenizer of this kind whose `describe()` this is."""

  @abc.abstractmethod
  def _tokenize(
    self, texts: list[str]
  ) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
    """Returns the ids of all texts in a row, and how many each text has."""

  def _check_ids(self, ids: Iterable[SupportsIndex]) -> list[int]:
    """Returns the ids as Python numbers, which every library takes."""
    checked = [int(i) for i in ids]
    for i in checked:
      if not 0 <= i < self.vocab_size:
        raise UsageError(
          f'token id {i} is not in the vocabulary: 0 to {self.vocab_size - 1}.'
        )
    return checked

  def __reduce__(self):
    return type(self).from_description, (self.describe(),)


def concatenate(
  rows: list[list[int]],
) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
  """Returns lists of ids in the form of `_tokenize`."""
  lengths = np.fromiter(map(len, rows), np.int32, len(rows))
  ids = np.fromiter((i for row in rows for i in row), np.int32, lengths.sum())
  return ids, lengths


def encodable(text: str) -> str:
  """Returns the text with U+FFFD for lone surrogates, which UTF-8 lacks."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
  return text


def _as_list(texts: str | Iterable[str]) -> list[str]:
  texts = [texts] if isinstance(texts, str) else list(texts)
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise UsageError(
        f'text {i} is of type {type(text).__name__}: strings are tokenised.'
      )
  return texts
