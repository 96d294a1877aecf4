"""Pairs that repeat others of their batch: false negatives of the loss.

Where two pairs have one caption, or one image, each is a right answer for the
other, and the loss pushes them apart as if they were wrong.
"""

import collections
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32


class Repeats(NamedTuple):
  """Sums over the pairs of some batches.

  Attributes:
    pairs: how many there were.
    captions, images: of these, pairs whose caption (as the model reads it), or
      whose image (the bytes of its file), another pair of the batch has too.
    either: pairs of which one or the other is so.
    floor: nats, the sum of ln(pairs of the batch with this caption): no model
      brings the softmax loss of these pairs below it.
  """

  pairs: float = 0.0
  captions: float = 0.0
  images: float = 0.0
  either: float = 0.0
  floor: float = 0.0


def count_repeats(
  tokens: Int32[np.ndarray, 'b T'], images: Sequence[int]
) -> Float64[np.ndarray, '5']:
  """Returns the `Repeats` of one batch, to be added up.

  Args:
    tokens: of each pair.
    images: a number for each pair, the same where the image is.
  """
  captions = _times([row.tobytes() for row in tokens])
  pictures = _times(images)
  return np.array(
    Repeats(
      pairs=len(captions),
      captions=float(np.count_nonzero(captions > 1)),
      images=float(np.count_nonzero(pictures > 1)),
      either=float(np.count_nonzero(np.maximum(captions, pictures) > 1)),
      floor=float(np.log(captions).sum()),
    ),
    np.float64,
  )


def _times(values: Sequence[Hashable]) -> np.ndarray:
  """How often each of them is among all."""
  counts = collections.Counter(values)
  return np.array([counts[value] for value in values])
