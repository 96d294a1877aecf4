"""The image features of a split with what is known of each picture.

Every evaluator gets them here, so that a picture goes through the encoder once
for all of them where a cache is given.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.data.reading import none_readable
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import OUTSIDE, Split
from clip_jax.evaluation.features.encoding import (
  PictureNotes,
  encode_pictures,
  picture_parts,
)
from clip_jax.evaluation.types import Encoder, Options

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
    difficult: of such data, labels of each picture that are neither right nor
      wrong there.
    corrupt: id to reason, of the pictures that were left out.
    pooled: float32, of any length: what the image tower has before the joint
      space; None of an encoder that does not tell it.
  """

  vectors: Float[np.ndarray, 'N E']
  ids: list[str]
  captions: list[list[str]]
  labels: Int[np.ndarray, ' N']
  several: list[list[int]] | None = None
  difficult: list[list[int]] | None = None
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  pooled: Float[np.ndarray, 'N D'] | None = None

  def __len__(self) -> int:
    return len(self.ids)

  def of(self, rows: np.ndarray) -> 'Features':
    """Some of them: indices, or a mask."""
    picked = np.arange(len(self))[rows].tolist()
    several, difficult, pooled = self.several, self.difficult, self.pooled
    return dataclasses.replace(
      self,
      vectors=self.vectors[picked],
      ids=[self.ids[i] for i in picked],
      captions=[self.captions[i] for i in picked],
      labels=self.labels[picked],
      several=several and [several[i] for i in picked],
      difficult=difficult and [difficult[i] for i in picked],
      pooled=None if pooled is None else pooled[picked],
    )


class Answered(NamedTuple):
  """The pictures of a split that are evaluated.

  Attributes:
    features: of them.
    answers: what is right for each.
    difficult: of multi-label data, the classes that are neither right nor
      wrong for a picture.
  """

  features: Features
  answers: Answers
  difficult: Bool[np.ndarray, 'N C'] | None


def read_features(encoder: Encoder, split: Split, options: Options) -> Features:
  """All readable pictures of a split through the encoder, or from the cache.

  Args:
    options: `cache`, `max_corrupt_records`, `progress`.
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

  Args:
    parts: rows as `encode_pictures` has them.
  Raises:
    FailureError: no picture could be read.
  """
  corrupt = {
    key: reason for notes, _ in parts for key, reason in notes.corrupt.items()
  }
  parts = [(notes, rows) for notes, rows in parts if len(rows)]
  if not parts:
    raise FailureError(none_readable(source.spec, corrupt))
  every = [notes for notes, _ in parts]
  rows = np.concatenate([rows for _, rows in parts])
  width = every[0].pooled_width
  return Features(
    rows[:, width:],
    [key for notes in every for key in notes.ids],
    [texts for notes in every for texts in notes.captions],
    np.array([label for notes in every for label in notes.labels], np.int64),
    several=_of_each([notes.several for notes in every], every),
    difficult=_of_each([notes.difficult for notes in every], every),
    corrupt=corrupt,
    pooled=rows[:, :width] if width else None,
  )


def _of_each(
  parts: Sequence[list[list[int]] | None], every: Sequence[PictureNotes]
) -> list[list[int]] | None:
  """Lists of all pictures in one, where any part has them."""
  if all(part is None for part in parts):
    return None
  return [
    labels
    for part, notes in zip(parts, every, strict=True)
    for labels in part or [[]] * len(notes.ids)
  ]


def labelled(features: Features, split: Split, task: str) -> Features:
  """Those whose class is evaluated, their labels being classes.

  Raises:
    UsageError: no record has a label, one is out of range, or records have
      several.
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
) -> Answered:
  """The pictures that are evaluated, and what is right for each.

  Args:
    features: of the split.
    classes: C.
    task: for messages.
  Raises:
    UsageError, FailureError: see `labelled`.
  """
  if features.several is not None:
    truth = _marked(features.several, split, classes)
    difficult = _marked(features.difficult or [], split, classes)
    return Answered(features, truth, difficult if difficult.any() else None)
  features = labelled(features, split, task)
  return Answered(features, features.labels, None)


def _marked(
  several: Sequence[Sequence[int]], split: Split, classes: int
) -> Bool[np.ndarray, 'N C']:
  """Which classes the labels of each picture are."""
  marked = np.zeros((len(several), classes), bool)
  for row, labels in enumerate(several):
    there = split.classes(np.array(labels, np.int64))
    marked[row, there[there != OUTSIDE]] = True
  return marked
