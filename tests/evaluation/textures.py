"""A data set in memory of pictures that hashes can tell apart."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Record, Source


class TextureSource(Source):
  """Given pictures; one that is None cannot be read."""

  def __init__(
    self,
    pictures: Sequence[Image.Image | None],
    *,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    spec: str = 'textures:',
  ):
    self.spec = spec
    self.label_names = tuple(names) if names else None
    self._pictures = pictures
    self._labels = labels

  def __len__(self) -> int:
    return len(self._pictures)

  def id(self, index: int) -> str:
    return f'{self.spec}{index}'

  def captions(self, index: int) -> list[str]:
    del index
    return []

  def __getitem__(self, index: int) -> Record:
    picture = self._pictures[index]
    if picture is None:
      raise CorruptImageError('damaged')
    file = io.BytesIO()
    picture.save(file, 'PNG')
    record: Record = {
      'id': self.id(index),
      'image': file.getvalue(),
      'caption': [],
    }
    if self._labels is not None:
      record['label'] = self._labels[index]
    return record


def texture(seed: int, level: int = 0) -> Image.Image:
  """Grey levels that change smoothly; the first pixel is `level`, for fakes."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8))
  return marked(small.resize((96, 80), Image.Resampling.BICUBIC), level)


def copy_of(picture: Image.Image, level: int = 0) -> Image.Image:
  """The same at another size and with the losses of JPEG."""
  file = io.BytesIO()
  picture.resize((150, 140)).save(file, 'JPEG', quality=60)
  return marked(Image.open(file).convert('L'), level)


def marked(picture: Image.Image, level: int) -> Image.Image:
  """With a first pixel of this level, by which `TableEncoder` knows it."""
  picture = picture.copy()
  picture.putpixel((0, 0), level)
  return picture
