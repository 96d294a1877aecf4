"""Scores image-text pairs by a model, for filters of a collection."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.loading import load
from clip_jax.inference.model import Model
from clip_jax.inference.references import recognise


@dataclasses.dataclass(frozen=True)
class PairScorer:
  """Embeds images and their texts, and compares them.

  It pickles, and each process loads the model once.

  Attributes:
    reference: a REF.
    options: of `clip_jax.load`, as pairs of a name and a value.
  """

  reference: str
  options: tuple[tuple[str, Any], ...] = ()

  def __call__(
    self, contents: Sequence[bytes], texts: Sequence[str]
  ) -> Mapping[str, np.ndarray]:
    """Returns the CLIP scores of pairs, and the images' embeddings.

    Args:
      contents: N encoded images.
      texts: of each.
    Returns:
      `score`, float32 [N], the cosine of image and text; `embedding`, float32
      [N, E] of unit length.
    """
    model = self.model()
    images = model.encode_image(list(contents))
    features = model.encode_text(list(texts))
    return {'score': (images * features).sum(axis=1), 'embedding': images}

  def model(self) -> Model:
    """Returns the model, on the device of this process."""
    return _load(self.reference, self.options)

  def pinned(self) -> 'PairScorer':
    """Returns a scorer by one checkpoint: of a run, the newest readable one.

    A process that loads the model later would have a newer one.
    """
    kind, path = recognise(self.reference)
    if kind != 'run':
      return self

    from clip_jax.checkpoints.reading import steps_of

    for step in steps_of(path):
      folder = path / 'checkpoints' / str(step)
      scorer = dataclasses.replace(self, reference=str(folder))
      # The one before may be sound; if none is, the run itself says what is.
      with contextlib.suppress(FailureError, UsageError):
        scorer.model()
        return scorer
    return self

  def embed(self, contents: Sequence[bytes]) -> np.ndarray:
    """Returns the embeddings of N images, float32 [N, E] of unit length."""
    return self.model().encode_image(list(contents))


@functools.lru_cache(maxsize=1)
def _load(reference: str, options: tuple[tuple[str, Any], ...]) -> Model:
  return load(reference, **dict(options))
