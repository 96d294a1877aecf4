"""Zero-shot classification by a model that predicts captions (figure 2).

Such a model has no features of texts. What it thinks of each class's prompts
as captions of an image takes their place.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.special
from jaxtyping import Float
from PIL import Image

from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.prompts import check_prompts, prompts_of
from clip_jax.evaluation.types import Options


@runtime_checkable
class CaptionModel(Protocol):
  """A model that may have a caption decoder, such as `Model`."""

  @property
  def classifies_by_captions(self) -> bool:
    """True for a model that predicts captions and has no text features."""
    ...

  def caption_scores(
    self, images: Iterable[Image.Image], texts: Sequence[str]
  ) -> Float[np.ndarray, 'B N']:
    """Returns how well each text describes each image, in nats."""
    ...


class CaptionClassifier:
  """An `Encoder` whose features of an image are its scores of the classes.

  The score of a class is the logarithm of the mean likelihood of its prompts,
  over all of its names and all templates. The softmax of an image's scores is
  the probability of each class, if all are alike likely beforehand.
  """

  logit_scale = 1.0

  def __init__(self, model: CaptionModel, dataset: Dataset, options: Options):
    """Prepares the prompts.

    Raises:
      UsageError: a class without a name, or a template without a slot.
    """
    templates = options.templates_for(dataset)
    check_prompts(dataset, templates)
    self._model = model
    self._prompts = prompts_of(dataset, templates)
    self.preprocessing = getattr(model, 'preprocessing', None)

  def encode_image(
    self, images: Iterable[Image.Image]
  ) -> Float[np.ndarray, 'B C']:
    """Returns the score of each class; rows are not of unit length."""
    texts = [text for own in self._prompts for text in own]
    scores = self._model.caption_scores(images, texts)
    if len(texts) == len(self._prompts):
      return scores
    ends = np.cumsum([len(own) for own in self._prompts])
    return np.stack(
      [
        scipy.special.logsumexp(own, axis=1) - np.log(own.shape[1])
        for own in np.split(scores, ends[:-1], axis=1)
      ],
      axis=1,
    )

  def encode_text(self, texts: Iterable[str]) -> Float[np.ndarray, 'N E']:
    """Refuses: there are no features of texts."""
    raise NotImplementedError('a model that predicts captions encodes no text')
