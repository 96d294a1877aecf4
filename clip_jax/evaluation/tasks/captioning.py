"""Captioning: whether a model writes the caption that an image has."""

import threading
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.metrics.intervals import clopper_pearson
from clip_jax.evaluation.types import Encoder, Evaluation, Options


@runtime_checkable
class Captioner(Protocol):
  """A model that writes captions, such as `Model` with a decoder."""

  def caption(self, images: Iterable[Image.Image]) -> list[str]:
    """Returns a caption for each image."""
    ...


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Compares the caption that is written for each image with its own.

  It is right where it equals one of these in all but case and white space,
  which suits names and other short answers. Images without a caption are not
  asked about.

  Args:
    options: `max_corrupt_records`, `progress`.
  Returns:
    metrics: 'exact_match', the fraction that is right, 'exact_match_low' and
      'exact_match_high', its 95 % interval (Clopper and Pearson), and
      'examples', images with a caption.
    records: for each of them 'id', 'captions', 'written' and 'right'.
  Raises:
    UsageError: the model writes no captions, or the data has none.
    FailureError: too many images are corrupt.
  """
  if not isinstance(encoder, Captioner):
    raise UsageError(
      'the task captioning needs a model that writes captions, with a decoder.'
    )
  source = dataset.test.source
  writer = _Writer(encoder)
  features = read_features(writer, source, Options(
    max_corrupt_records=options.max_corrupt_records, progress=options.progress
  ))  # fmt: skip
  records = [
    {
      'id': key,
      'captions': captions,
      'written': writer.captions[int(number)],
      'right': _plain(writer.captions[int(number)]) in map(_plain, captions),
    }
    for key, captions, [number] in zip(
      features.ids, features.captions, features.embeddings, strict=True
    )
    if captions
  ]
  if not records:
    raise UsageError(
      f'data {dataset.name!r} has no captions, which captioning needs'
      f'{source.hint}.'
    )
  right = sum(record['right'] for record in records)
  low, high = clopper_pearson(right, len(records))
  return Evaluation(
    metrics={
      'exact_match': right / len(records),
      'exact_match_low': low,
      'exact_match_high': high,
      'examples': float(len(records)),
    },
    records=records,
    corrupt=features.corrupt,
  )


class _Writer:
  """An `Encoder` whose feature of an image is the number of its caption."""

  logit_scale = 1.0

  def __init__(self, model: Any):
    self.captions: list[str] = []
    self.preprocessing = getattr(model, 'preprocessing', None)
    self._model = model
    self._lock = threading.Lock()  # shards may be encoded side by side

  def encode_image(
    self, images: Iterable[Image.Image]
  ) -> Float[np.ndarray, 'N 1']:
    written = self._model.caption(images)
    with self._lock:
      first = len(self.captions)
      self.captions += written
    return np.arange(first, first + len(written), dtype=np.float32)[:, None]

  def encode_text(self, texts: Iterable[str]) -> Float[np.ndarray, 'N E']:
    raise NotImplementedError('it writes texts, and reads none')


def _plain(text: str) -> str:
  return ' '.join(text.casefold().split())
