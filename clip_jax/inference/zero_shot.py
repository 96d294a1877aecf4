"""Zero-shot classification with any two encoders into one space."""

import abc
import collections
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.inference import classifier as classifiers
from clip_jax.inference.inputs import ImageInputs

_KEPT_CLASSIFIERS = 8


class ZeroShotModel(abc.ABC):
  """What `Model` and `Exported` make of their encoders.

  Attributes:
    logit_scale: what cosine similarities are multiplied by: 1 / temperature.
    logit_bias: what is added to them then; None of a model without one.
  """

  def __init__(self):
    self._classifiers: collections.OrderedDict[
      tuple[tuple[str, ...], tuple[str, ...]], tuple[np.ndarray, np.ndarray]
    ] = collections.OrderedDict()

  @property
  @abc.abstractmethod
  def logit_scale(self) -> float: ...

  @property
  @abc.abstractmethod
  def logit_bias(self) -> float | None: ...

  @abc.abstractmethod
  def encode_image(self, images: ImageInputs) -> Float[np.ndarray, 'B E']:
    """Image features of unit length.

    Args:
      images: one or many of: a path, encoded bytes, a PIL image, uint8
        [H, W, 3]; or uint8 [B, H, W, 3]. An iterable is read as it is needed.
    Raises:
      CorruptImageError: one cannot be read; the message names it.
      UsageError: one is something else.
    """

  @abc.abstractmethod
  def encode_text(self, texts: str | Iterable[str]) -> Float[np.ndarray, 'N E']:
    """Text features of unit length.

    Args:
      texts: one or many. What is longer than the context is cut; the
        tokenizer counts those in `tokenizer.truncated`.
    Raises:
      UsageError: one is not a string, or there is no tokenizer.
    """

  def classifier(
    self,
    labels: Sequence[str],
    templates: Sequence[str] = classifiers.PLAIN,
    *,
    unit_length: bool = False,
  ) -> Float[np.ndarray, 'E C']:
    """Weights of a linear classifier, made by the text tower (paper, 3.1.2).

    The last ones asked for are kept, so that any number of images costs the
    text tower one run.

    Args:
      labels: different names.
      templates: prompts with a slot '{}' for the name, averaged.
      unit_length: columns without the temperature, which are directions.
    Returns:
      float32, read-only. `image_features @ weights` are logits: their softmax
      is what `classify` returns. With `unit_length`, cosine similarities.
    Raises:
      UsageError: labels are missing, empty, or repeated; or a template has no
        slot.
    """
    if isinstance(labels, str):
      raise UsageError(f'labels={labels!r}: give a list of names.')
    classifiers.check_templates(templates)
    key = tuple(labels), tuple(templates)
    _check_different(key[0])
    if key not in self._classifiers:
      directions = classifiers.zero_shot_weights(self.encode_text, *key)
      weights = directions * np.float32(self.logit_scale)
      for array in (directions, weights):
        array.setflags(write=False)
      self._classifiers[key] = (directions, weights)
    self._classifiers.move_to_end(key)
    while len(self._classifiers) > _KEPT_CLASSIFIERS:
      self._classifiers.popitem(last=False)
    return self._classifiers[key][0 if unit_length else 1]

  def classify(
    self,
    images: ImageInputs,
    labels: Sequence[str],
    templates: Sequence[str] = classifiers.PLAIN,
    *,
    independent: bool = False,
  ) -> Float[np.ndarray, 'B C']:
    """The probability of each label, for each image.

    Args:
      images: as in `encode_image`.
      labels, templates: as in `classifier`.
      independent: each label by itself, by a sigmoid, as a model that was
        trained with a sigmoid (SigLIP) means it. By default the labels share
        one softmax, for these models too.
    Returns:
      float32; rows sum to 1, unless labels are independent.
    Raises:
      UsageError: independent labels of a model without a logit bias.
    """
    bias = self.logit_bias
    if independent and bias is None:
      raise UsageError(
        'independent labels need a model with a logit bias (SigLIP); this '
        'one was trained with a softmax.'
      )
    weights = self.classifier(labels, templates)
    logits = self.encode_image(images) @ weights
    if independent:
      return classifiers.sigmoid(logits + np.float32(bias))
    return classifiers.softmax(logits)


def _check_different(labels: Sequence[str]) -> None:
  counts = collections.Counter(labels)
  twice = [label for label, count in counts.items() if count > 1]
  if twice:
    raise UsageError(f'label {twice[0]!r} is there {counts[twice[0]]} times.')
