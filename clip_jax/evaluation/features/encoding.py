"""Pictures and texts through an encoder in parts, fresh or for the cache.

Both go the same way, so that features from a cache are the bits of fresh ones:
a part is batched by itself.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.images import Preprocessing
from clip_jax.data.sources import Source
from clip_jax.evaluation.features.concurrency import may_overlap
from clip_jax.evaluation.types import Encoder, Options, PoolingEncoder
from clip_jax.inference.bulk.encode import Encoded, Item, encode_parts
from clip_jax.inference.bulk.parts import Part, Plan
from clip_jax.inference.bulk.records import picture_items

PART_ROWS = 4096  # records a part, which is what a kill costs at most


@dataclasses.dataclass(frozen=True)
class PictureNotes:
  """What is known of a part's pictures beside their vectors, as JSON has it.

  Attributes:
    ids: of those that could be read, as are all but `corrupt`.
    captions: of each, its texts.
    labels: of the source; -1 for a record without one.
    several: of each, its labels where a picture may have several; or None.
    difficult: of each, labels that are neither right nor wrong; or None.
    corrupt: id to reason, of the pictures that were left out.
    pooled_width: D, the first columns of the vectors: features before the
      joint space; 0 of an encoder that does not tell them.
  """

  ids: list[str]
  captions: list[list[str]]
  labels: list[int]
  several: list[list[int]] | None
  difficult: list[list[int]] | None
  corrupt: dict[str, str]
  pooled_width: int


def picture_parts(source: Source) -> list[Part]:
  """How the records of a source are divided."""
  return list(Plan(len(source), 0, PART_ROWS))


def text_parts(texts: Sequence[str]) -> list[Part]:
  """How texts are divided."""
  return list(Plan(0, len(texts), PART_ROWS))


def encode_pictures(
  encoder: Encoder,
  source: Source,
  parts: Sequence[Part],
  options: Options,
  corrupt: Mapping[str, str],
) -> Iterator[tuple[Part, PictureNotes, Float[np.ndarray, 'N F']]]:
  """Parts of a source, in their order: see `PictureNotes.pooled_width`.

  Args:
    parts: of `picture_parts`; progress counts the others as done.
    options: `max_corrupt_records`, `progress`.
    corrupt: id to reason, of pictures of other parts that were left out.
  Raises:
    FailureError: too many pictures are corrupt, or features are not finite.
  """
  total, limit = len(source), options.max_corrupt_records
  indices = (i for part in parts for i in range(part.start, part.stop))
  # Of an encoder that somebody else brings nothing is known.
  own = getattr(encoder, 'preprocessing', None)
  items = picture_items(
    source,
    indices,
    corrupt,
    limit,
    preprocessing=own if isinstance(own, Preprocessing) else None,
  )
  done = total - sum(map(len, parts))
  watched = iter(options.progress(items, total, 'images', done=done))
  encode = _SideBySide(encoder)
  with (
    contextlib.closing(items),
    contextlib.closing(
      encode_parts(encode, parts, watched, overlap=may_overlap())
    ) as results,
  ):
    for encoded in results:
      yield encoded.part, _notes_of(encoded, encode.width), encoded.vectors


def encode_texts(
  encoder: Encoder,
  texts: Sequence[str],
  parts: Sequence[Part],
  options: Options,
) -> Iterator[tuple[Part, Float[np.ndarray, 'N E']]]:
  """Parts of some texts, in their order.

  Args:
    parts: of `text_parts`; progress counts the others as done.
    options: `progress`.
  Raises:
    FailureError: a feature is not finite.
  """
  items = (
    Item(str(i), '', texts[i])
    for part in parts
    for i in range(part.start, part.stop)
  )
  done = len(texts) - sum(map(len, parts))
  watched = iter(options.progress(items, len(texts), 'texts', done=done))
  results = encode_parts(
    encoder.encode_text, parts, watched, overlap=may_overlap()
  )
  with contextlib.closing(items), contextlib.closing(results):
    for encoded in results:
      yield encoded.part, encoded.vectors


class _SideBySide:
  """Pictures to the columns of `PictureNotes.pooled_width`, and the others.

  Attributes:
    width: of the first; known once pictures were encoded.
  """

  def __init__(self, encoder: Encoder):
    self.width = 0
    self._encoder = encoder

  def __call__(self, images: Iterable[Any]) -> Float[np.ndarray, 'N F']:
    if not isinstance(self._encoder, PoolingEncoder):
      return self._encoder.encode_image(images)
    pooled, vectors = self._encoder.encode_image_with_pooled(images)
    self.width = pooled.shape[1]
    return np.concatenate([pooled, vectors], axis=1)


def _notes_of(encoded: Encoded, pooled_width: int) -> PictureNotes:
  records = [item.record for item in encoded.items if item.record is not None]
  several = difficult = None
  if any('labels' in record for record in records):
    several = [record.get('labels', []) for record in records]
    difficult = [record.get('difficult', []) for record in records]
  return PictureNotes(
    ids=[record['id'] for record in records],
    captions=[record['caption'] for record in records],
    labels=[record.get('label', -1) for record in records],
    several=several,
    difficult=difficult,
    corrupt={item.id: item.reason for item in encoded.items if item.reason},
    pooled_width=pooled_width,
  )
