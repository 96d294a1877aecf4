"""A model without towers and a source without files, for many records."""

import hashlib
import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Record, Source
from tests.tiny import TINY


class FakeModel:
  """Rows that depend on the input alone, made at once."""

  origin, step = 'fake', 7

  def __init__(self, dims=8, seed=0):
    self.dims = dims
    self.config = TINY
    self.variables = {'params': {'w': np.full(3, seed, np.float32)}}
    self.preprocessing = Preprocessing(image_size=4)
    self.tokenizer = SimpleNamespace(
      context_length=3,
      describe=lambda: {'kind': 'words'},
      text_lengths=lambda texts: np.array([len(x.split()) for x in texts]),
    )

  def encode_image(self, images):
    return self._rows(image.tobytes() for image in images)

  def encode_text(self, texts):
    return self._rows(text.encode() for text in texts)

  def _rows(self, contents):
    seeds = [
      int.from_bytes(hashlib.sha256(content).digest()[:4], 'little')
      for content in contents
    ]
    rows = np.empty((len(seeds), self.dims), np.float32)
    for row, seed in zip(rows, seeds, strict=True):
      row[:] = np.random.default_rng(seed).normal(size=self.dims)
    return rows


class FakeSource(Source):
  """Records by index; some of them corrupt."""

  spec = 'fake:source'

  def __init__(self, count, corrupt=()):
    self.count, self.corrupt = count, corrupt
    self.asked: list[int] = []

  def __len__(self):
    return self.count

  def id(self, index):
    return f'{index}.png'

  def captions(self, index):
    return [f'number {index}'] if index % 2 else []

  def __getitem__(self, index) -> Record:
    self.asked.append(index)
    if index in self.corrupt:
      raise CorruptImageError('damaged')
    colour = (index % 256, index // 256 % 256, index // 65536)
    file = io.BytesIO()
    Image.new('RGB', (2, 2), colour).save(file, 'PNG')
    return {
      'id': self.id(index),
      'image': file.getvalue(),
      'caption': self.captions(index),
    }
