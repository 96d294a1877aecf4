"""A run's model and held-out examples, small and the same each time."""

import io

import numpy as np
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Source

COLOURS = ('red', 'green', 'blue', 'brown', 'black')
THINGS = ('apple', 'cat face', 'house', 'hand', 'ball', 'tree', 'old man')
NAMES = tuple(f'{colour} {thing}' for colour in COLOURS for thing in THINGS)


def png(i, size=(40, 30)):
  encoded = io.BytesIO()
  Image.new('RGB', size, (37 * i % 256, 90, 200)).save(encoded, 'PNG')
  return encoded.getvalue()


class FakeSource(Source):
  spec = 'folder:held out'

  def __init__(self, texts=NAMES, labelled=True, broken=()):
    self.texts = list(texts)
    self.label_names = tuple(texts) if labelled else None
    self.broken = broken

  def __len__(self):
    return len(self.texts)

  def __getitem__(self, index):
    if index in self.broken:
      raise CorruptImageError('damaged image')
    record = {
      'id': str(index),
      'image': png(index),
      'caption': self.captions(index),
    }
    return record | ({'label': index} if self.label_names else {})

  def captions(self, index):
    return [self.texts[index]] if self.texts[index] else []

  def id(self, index):
    return str(index)


class FakeModel:
  """Random unit features, the same at every call."""

  logit_scale = 20.0

  def __init__(self):
    self.params = {'a': np.zeros((3, 4), np.float32), 'b': np.zeros(5)}
    self.calls = []

  def encode_image(self, images):
    images = list(images)
    self.calls.append(('image', len(images)))
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(len(images), 16)))

  def encode_text(self, texts):
    texts = list(texts)
    self.calls.append(('text', len(texts)))
    rng = np.random.default_rng(1)
    return unit(rng.normal(size=(len(texts), 16)))


def unit(x):
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  return x.astype(np.float32)


class CaptionedSource(FakeSource):
  """Two captions an image; one image has none."""

  def captions(self, index):
    if index == 4:
      return []
    return [f'first of {index}', f'{self.texts[index]} 25 cents']
