"""A data set in memory of images that hashes can tell apart."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Record, Source


class TextureSource(Source):
  """Given images; one that is None cannot be read."""

  def __init__(
    self,
    images: Sequence[Image.Image | None],
    *,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    spec: str = 'textures:',
  ):
    self.spec = spec
    self.label_names = tuple(names) if names else None
    self._images = images
    self._labels = labels

  def __len__(self) -> int:
    return len(self._images)

  def id(self, index: int) -> str:
    return f'{self.spec}{index}'

  def captions(self, index: int) -> list[str]:
    del index
    return []

  def __getitem__(self, index: int) -> Record:
    image = self._images[index]
    if image is None:
      raise CorruptImageError('damaged')
    file = io.BytesIO()
    image.save(file, 'PNG')
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


def copy_of(image: Image.Image, level: int = 0) -> Image.Image:
  """The same at another size and with the losses of JPEG."""
  file = io.BytesIO()
  image.resize((150, 140)).save(file, 'JPEG', quality=60)
  return marked(Image.open(file).convert('L'), level)


def marked(image: Image.Image, level: int) -> Image.Image:
  """With a first pixel of this level, by which `TableEncoder` knows it."""
  image = image.copy()
  image.putpixel((0, 0), level)
  return image
