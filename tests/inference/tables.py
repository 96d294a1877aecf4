"""Tables of embeddings for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.inference.embeddings import write_rows
from clip_jax.inference.embeddings_table import Extent, Lengths, Rows


def unit_rows(seed: int, count: int, dims: int = 16, clusters: int = 0):
  """Random unit-length float32 [count, dims], scattered or in clusters."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(count, dims))
  if clusters:
    centres = rng.normal(size=(clusters, dims))
    rows = centres[rng.integers(0, clusters, count)] + 0.4 * rows
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_table(
  path: Path,
  vectors: np.ndarray,
  *,
  ids: list[str] | None = None,
  kinds: list[str] | None = None,
  captions: list[str] | None = None,
  about: dict[str, Any] | None = None,
  digests: np.ndarray | None = None,
  block: int = 100,
) -> Path:
  """A file as `clip-jax embed` leaves it; returns its path."""
  count, dims = vectors.shape
  ids = ids or [f'{i}.png' for i in range(count)]
  kinds = kinds or ['image'] * count
  captions = captions or [f'caption {i}' for i in range(count)]
  if digests is None:  # all rows are of other content
    digests = np.zeros((count, 16), np.uint8)
    digests[:, :8] = np.arange(count, dtype='>u8')[:, None].view(np.uint8)

  def blocks():
    for i in range(0, count, block):
      part = slice(i, i + block)
      texts = ids[part], kinds[part], captions[part]
      yield Rows(*texts, vectors[part], digests[part])

  lengths = [Lengths().extended_by(texts) for texts in (ids, captions)]
  extent = Extent(count, dims, *lengths)
  with open(path, 'wb') as file:
    write_rows(file, path.suffix, blocks, extent, about or {})
  return path
