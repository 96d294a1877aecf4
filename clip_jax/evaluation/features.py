"""The image features of a split with what is known of each picture.

Every evaluator gets them here, so that a picture goes through the encoder once
for all of them where a cache is given.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.data.reading import none_readable
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import OUTSIDE, Split
from clip_jax.evaluation.encoder import Encoder, Options
from clip_jax.evaluation.encoding import (
  PictureNotes,
  encode_pictures,
  picture_parts,
)

# Classes, or of multi-label data whether each is there; metrics take both.
Answers = Int[np.ndarray, ' N'] | Bool[np.ndarray, 'N C']


@dataclasses.dataclass(frozen=True)
class Features:
  """N pictures that could be read, in the order of their source.

  Attributes:
    vectors: float32, unit length.
    ids: of the records.
    captions: of each picture, its texts.
    labels: of the source; -1 for a record without one.
    several: of multi-label data (VOC2007), instead of `labels`: the labels of
      each picture.
    corrupt: id to reason, of the pictures that were left out.
  """

  vectors: Float[np.ndarray, 'N E']
  ids: list[str]
  captions: list[list[str]]
  labels: Int[np.ndarray, ' N']
  several: list[list[int]] | None = None
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.ids)

  def of(self, rows: np.ndarray) -> 'Features':
    """Some of them: indices, or a mask."""
    picked = np.arange(len(self))[rows]
    return Features(
      self.vectors[picked],
      [self.ids[i] for i in picked],
      [self.captions[i] for i in picked],
      self.labels[picked],
      None if self.several is None else [self.several[i] for i in picked],
      self.corrupt,
    )


def read_features(encoder: Encoder, split: Split, options: Options) -> Features:
  """All readable pictures of a split through the encoder, or from the cache.

  Args:
    options: `cache`, `max_corrupt_records`, `watch`.
  Raises:
    FailureError: too many pictures are corrupt, or features are not finite.
  """
  source = split.source
  if options.cache is not None:
    return options.cache.images(source, options)
  parts = encode_pictures(encoder, source, picture_parts(source), options, {})
  return joined(source, [(notes, vectors) for _, notes, vectors in parts])


def joined(
  source: Source, parts: Sequence[tuple[PictureNotes, np.ndarray]]
) -> Features:
  """All parts of a source as one, in their order.

  Raises:
    FailureError: no picture could be read.
  """
  corrupt = {
    key: reason for notes, _ in parts for key, reason in notes.corrupt.items()
  }
  vectors = [rows for _, rows in parts if len(rows)]
  if not vectors:
    raise FailureError(none_readable(source.spec, corrupt))
  several = None
  if any(notes.several is not None for notes, _ in parts):
    several = [
      labels
      for notes, _ in parts
      for labels in notes.several or [[] for _ in notes.ids]
    ]
  labels = [label for notes, _ in parts for label in notes.labels]
  return Features(
    np.concatenate(vectors),
    [key for notes, _ in parts for key in notes.ids],
    [texts for notes, _ in parts for texts in notes.captions],
    np.array(labels, np.int64),
    several,
    corrupt,
  )


def labelled(features: Features, split: Split, task: str) -> Features:
  """Those whose class is evaluated, their labels being classes.

  Raises:
    UsageError: no record has a label, or records have several.
    FailureError: a label is out of range.
  """
  if features.several is not None:
    raise UsageError(
      f'data {split.source.spec!r} has several labels a picture: {task} takes '
      'one.'
    )
  if len(features) and (features.labels < 0).all():
    raise UsageError(
      f'data {split.source.spec!r}: record {features.ids[0]} has no label, '
      f'which {task} needs.'
    )
  classes = split.classes(features.labels)
  kept = classes != OUTSIDE
  return dataclasses.replace(features.of(kept), labels=classes[kept])


def answered(
  features: Features, split: Split, classes: int, task: str
) -> tuple[Features, Answers]:
  """The pictures that are evaluated, and what is right for each.

  Args:
    features: of the split.
    classes: C.
    task: for messages.
  Raises:
    UsageError, FailureError: see `labelled`.
  """
  if features.several is not None:
    return features, truth_of(features, split, classes)
  features = labelled(features, split, task)
  return features, features.labels


def truth_of(
  features: Features, split: Split, classes: int
) -> Bool[np.ndarray, 'N C']:
  """Which classes are right for each picture of multi-label data."""
  truth = np.zeros((len(features), classes), bool)
  for row, labels in enumerate(features.several or []):
    there = split.classes(np.array(labels, np.int64))
    truth[row, there[there != OUTSIDE]] = True
  return truth
