"""A data set in memory, and two encoders that need no model."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Record, Source


class ListSource(Source):
  """Images of one grey level each; a level of None cannot be read."""

  spec = 'list:'

  def __init__(
    self,
    levels: Sequence[int | None],
    *,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
  ):
    self._levels = levels
    self._labels = labels
    self._captions = captions
    self.label_names = tuple(names) if names else None

  def __len__(self) -> int:
    return len(self._levels)

  def id(self, index: int) -> str:
    return f'image/{index}'

  def captions(self, index: int) -> list[str]:
    return list(self._captions[index]) if self._captions else []

  def __getitem__(self, index: int) -> Record:
    level = self._levels[index]
    if level is None:
      raise CorruptImageError('damaged')
    file = io.BytesIO()
    Image.new('L', (4, 4), level).save(file, 'PNG')
    record: Record = {
      'id': self.id(index),
      'image': file.getvalue(),
      'caption': self.captions(index),
    }
    if self._labels is not None:
      record['label'] = self._labels[index]
    return record


class TableEncoder:
  """Features from two tables: by an image's grey level, and by a text."""

  logit_scale = 10.0

  def __init__(
    self,
    by_level: dict[int, Sequence[float]],
    by_text: dict[str, Sequence[float]],
  ):
    self._by_level = by_level
    self._by_text = by_text
    self.texts: list[str] = []  # all that were asked for

  def encode_image(self, images: Iterable[Image.Image]) -> np.ndarray:
    rows = [self._by_level[image.getpixel((0, 0))] for image in images]
    return unit(rows)

  def encode_text(self, texts: Iterable[str]) -> np.ndarray:
    texts = list(texts)
    self.texts += texts
    return unit([self._by_text[text] for text in texts])


def unit(rows: Sequence[Sequence[float]]) -> np.ndarray:
  """float32 rows of length 1; NaN stays."""
  if not len(rows):
    return np.empty((0, 2), np.float32)
  array = np.array(rows, np.float32)
  return array / np.linalg.norm(array, axis=1, keepdims=True)
