"""SigLIP's tokenizer: a SentencePiece model over text without punctuation.

As the SiglipTokenizer of transformers computes it, which the published
Hugging Face directories name: letters are made small, ASCII punctuation is
dropped, and rows are padded with `</s>`, which also ends them. Special tokens
that stand in a text become what they name, blanks around them go, and what
follows one is not the beginning of a word.
"""

import os
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from clip_jax.tokenizers.base import concatenate, encodable
from clip_jax.tokenizers.cleaning import cleaner_named
from clip_jax.tokenizers.sentence_piece import SentencePieceTokenizer

CONTEXT_LENGTH = 64
_BLANK = '▁'  # how SentencePiece writes one
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_BLANKS = re.compile(r'\s+')


class SiglipTokenizer(SentencePieceTokenizer):
  """The tokenizer of SigLIP 1; SigLIP 2 has one of its own (Gemma's)."""

  kind = 'siglip'

  def __init__(
    self,
    model: bytes,
    context_length: int | None = None,
    *,
    lower_case: bool = True,
    cleaning: str | None = None,
    origin: str = 'a description',
  ):
    """Reads a model.

    Args:
      model: the content of a SentencePiece model file.
      context_length: T; None is 64.
      lower_case: letters are made small.
      cleaning: what open_clip does to texts before, by its name in
        `cleaning.WORDS`.
      origin: where the model is from, for the errors.
    Raises:
      FailureError: it is no SentencePiece model, or one without an eos.
      UsageError: another cleaning.
    """
    if context_length is None:
      context_length = CONTEXT_LENGTH
    super().__init__(model, context_length, origin=origin)
    self.bos_id = None  # a text begins with its first word
    self.pad_id = self.eos_id
    self.lower_case = lower_case
    self.cleaning = cleaning
    self._words = cleaner_named(cleaning) if cleaning else None
    processor = self._processor
    unknown = processor.id_to_piece(processor.unk_id())
    self.special_pieces = self.piece(self.eos_id), unknown
    self._ids = {p: processor.piece_to_id(p) for p in self.special_pieces}
    self._specials = re.compile(
      f'({"|".join(map(re.escape, self.special_pieces))})'
    )
    self._blank_id = processor.piece_to_id(_BLANK)
    # A segment is tokenised behind this, so that it begins no word by itself.
    self._before = unknown
    self._before_length = len(processor.encode(unknown))

  @classmethod
  def from_file(
    cls,
    path: str | os.PathLike[str],
    context_length: int | None = None,
    *,
    lower_case: bool = True,
    cleaning: str | None = None,
  ) -> 'SiglipTokenizer':
    """Raises UsageError where there is no such file."""
    return cls(
      cls.read(path),
      context_length,
      lower_case=lower_case,
      cleaning=cleaning,
      origin=os.fspath(path),
    )

  def encode(self, text: str) -> list[int]:
    return self._rows([text])[0]

  def describe(self) -> dict[str, Any]:
    return {
      **super().describe(),
      'lower_case': self.lower_case,
      'cleaning': self.cleaning,
    }

  @classmethod
  def from_description(
    cls, description: Mapping[str, Any]
  ) -> 'SiglipTokenizer':
    return cls(
      cls.described_model(description),
      description.get('context_length'),
      lower_case=description.get('lower_case', True),
      cleaning=description.get('cleaning'),
    )

  def _tokenize(
    self, texts: list[str]
  ) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
    return concatenate([[*row, self.eos_id] for row in self._rows(texts)])

  def _rows(self, texts: list[str]) -> list[list[int]]:
    if self._words is not None:
      texts = [' '.join(self._words(text)) for text in texts]
    parts = [self._parts(encodable(text)) for text in texts]
    segments = [
      self._before + self._canonical(part)
      for row in parts
      for part in row
      if part not in self._ids
    ]
    encoded = iter(self._processor.encode(segments, num_threads=1))
    return [self._join(row, encoded) for row in parts]

  def _join(self, row: list[str], encoded: Iterator[list[int]]) -> list[int]:
    ids = []
    for part in row:
      if part in self._ids:
        ids.append(self._ids[part])
        continue
      ids += next(encoded)[self._before_length :]
      if ids == [self._blank_id] and len(row) > 1:
        ids = []  # nothing stands before the special token
    return ids

  def _parts(self, text: str) -> list[str]:
    """Returns segments and special tokens in turn, without blanks between."""
    parts = self._specials.split(_BLANK + text.replace(_BLANK, ' '))
    for i in range(1, len(parts), 2):
      parts[i - 1] = parts[i - 1].rstrip()
      parts[i + 1] = parts[i + 1].lstrip()
    return [part for part in parts if part]

  def _canonical(self, segment: str) -> str:
    if self.lower_case:
      segment = segment.lower()
    segment = segment.translate(_NO_PUNCTUATION)
    return _BLANKS.sub(' ', segment).strip()
