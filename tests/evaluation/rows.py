"""Images that stand for rows of an array, and an encoder that knows them."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from clip_jax.data.sources import Record, Source
from clip_jax.evaluation.dataset import Dataset, Split


class RowSource(Source):
  """Image i is the number of a row, in its first pixel."""

  def __init__(
    self,
    rows: Sequence[int],
    labels: Sequence[int] | None = None,
    *,
    several: Sequence[Sequence[int]] | None = None,
    difficult: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] | None = None,
    spec: str = 'rows:',
  ):
    self.spec = spec
    self._rows, self._labels = rows, labels
    self._several, self._difficult = several, difficult
    self.label_names = tuple(names) if names else None

  def __len__(self) -> int:
    return len(self._rows)

  def id(self, index: int) -> str:
    return f'{self.spec}{index}'

  def captions(self, index: int) -> list[str]:
    return []

  def __getitem__(self, index: int) -> Record:
    row = int(self._rows[index])
    file = io.BytesIO()
    Image.new('RGB', (1, 1), (row % 256, row // 256, 0)).save(file, 'PNG')
    record: Record = {
      'id': self.id(index),
      'image': file.getvalue(),
      'caption': [],
    }
    if self._labels is not None:
      record['label'] = int(self._labels[index])
    if self._several is not None:
      record['labels'] = [int(x) for x in self._several[index]]
    if self._difficult is not None:
      record['difficult'] = [int(x) for x in self._difficult[index]]
    return record


class RowEncoder:
  """Features as they are in an array, of unit length or not."""

  logit_scale = 10.0

  def __init__(
    self, rows: np.ndarray, by_text: dict[str, Sequence[float]] | None = None
  ):
    self._rows = rows.astype(np.float32)
    self._by_text = by_text or {}

  def encode_image(self, images: Iterable[Image.Image]) -> np.ndarray:
    return self._rows[row_numbers(images)]

  def encode_text(self, texts: Iterable[str]) -> np.ndarray:
    rows = np.array([self._by_text[text] for text in texts], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class PoolingRowEncoder(RowEncoder):
  """One whose tower knows other rows before the joint space."""

  def __init__(self, pooled: np.ndarray, rows: np.ndarray, by_text=None):
    super().__init__(rows, by_text)
    self._pooled = pooled.astype(np.float32)

  def encode_image_with_pooled(
    self, images: Iterable[Image.Image]
  ) -> tuple[np.ndarray, np.ndarray]:
    numbers = row_numbers(images)
    return self._pooled[numbers], self._rows[numbers]


def row_numbers(images: Iterable[Image.Image]) -> list[int]:
  """Of the images of a `RowSource`."""
  pixels = [np.asarray(image.convert('RGB'))[0, 0] for image in images]
  return [int(p[0]) + 256 * int(p[1]) for p in pixels]


def blobs(
  classes: int, each: int, *, width: int = 8, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Unit rows about a centre a class, in a random order, and their labels.

  The centre of class c is the unit vector c.
  """
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(classes), each))
  rows = np.eye(classes, width)[labels]
  rows = rows + noise * rng.normal(size=rows.shape)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def split_of(
  rows: Sequence[int], labels: np.ndarray, spec: str = 'rows:'
) -> Split:
  """The given rows, labelled by the array's labels."""
  return Split(RowSource(rows, [labels[i] for i in rows], spec=spec))


def dataset_of(
  labels: np.ndarray,
  *,
  train: Sequence[int] | None,
  test: Sequence[int],
  validation: Sequence[int] | None = None,
  names: Sequence[str] = (),
  **fields,
) -> Dataset:
  """Rows of an array in splits; class c is called 'c' unless named."""
  names = names or [str(c) for c in range(int(max(labels)) + 1)]
  return Dataset(
    'blobs',
    split_of(test, labels, 'test:'),
    train=None if train is None else split_of(train, labels, 'train:'),
    validation=(
      None if validation is None else split_of(validation, labels, 'val:')
    ),
    class_names=tuple((name,) for name in names),
    **fields,
  )
