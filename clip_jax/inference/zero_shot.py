"""Zero-shot classification with any two encoders into one space."""

import abc
import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError, print_warnings
from clip_jax.inference import classifier as classifiers
from clip_jax.inference.batching import check_batch_size, run_in_batches
from clip_jax.inference.classifier import Templates
from clip_jax.inference.inputs import (
  ImageInputs,
  ImageReader,
  OnError,
  as_image_list,
)
from clip_jax.tokenizers.base import Tokenizer

_KEPT_CLASSIFIERS = 8


class ZeroShotModel(abc.ABC):
  """The methods that `Model` and `Exported` share.

  Attributes:
    preprocessing: how an image becomes uint8 [S, S, 3] (or of native aspect
      `Patches`) and then floats.
    logit_scale: what cosine similarities are multiplied by: 1 / temperature.
    logit_bias: what is added to them then; None of a model without one.
  """

  preprocessing: Preprocessing

  def __init__(self, batch_size: int, mesh: Mesh | None = None):
    """Keeps what both kinds encode with.

    Args:
      batch_size: rows on the device at once.
      mesh: its batch axes share each batch; None, the default device.
    Raises:
      UsageError: the batch size is below 1.
    """
    check_batch_size(batch_size)
    self._batch_size = batch_size
    self._mesh = mesh
    self._classifiers: collections.OrderedDict[
      tuple[tuple[str, ...], tuple[str | tuple[str, ...], ...]],
      tuple[np.ndarray, np.ndarray],
    ] = collections.OrderedDict()

  @property
  @abc.abstractmethod
  def tokenizer(self) -> Tokenizer: ...

  @property
  @abc.abstractmethod
  def logit_scale(self) -> float: ...

  @property
  @abc.abstractmethod
  def logit_bias(self) -> float | None: ...

  @abc.abstractmethod
  def _encoder(
    self, name: str, **options: Any
  ) -> tuple[Callable[[Any], Any], Any]:
    """Returns an encoder, rows to results, and its results of no rows.

    They are an array, or a tree of some.

    Args:
      name: 'encode_image', 'encode_text', and others that a class has.
      options: of that encoder.
    Raises:
      UsageError: the model does not have it.
    """

  def encode_image(
    self,
    images: ImageInputs,
    *,
    batch_size: int | None = None,
    progress: bool = False,
    on_error: OnError = 'raise',
  ) -> Float[np.ndarray, 'B E']:
    """Returns image features of unit length.

    Args:
      images: one or many of: a path, encoded bytes, an open file, a PIL image,
        an array [H, W, 3] or [3, H, W] (of numpy, jax or torch: uint8, or
        floats in [0, 1]); or an array of many. An iterable is read as it is
        needed.
      batch_size: rows on the device at once; None: the model's.
      progress: show a bar on stderr.
      on_error: of an image that cannot be read: 'raise'; 'skip', which leaves
        out its row and names it on stderr; or a function that is called at
        the end, once for each unreadable image, with its index and the error.
        B is the number of images that were read, in their order: with
        `bad = {}` and `on_error=bad.__setitem__`, the rows are of the indices
        that are not in `bad`.
    Raises:
      CorruptImageError: one cannot be read; the message names it. Where there
        is no such file, it is a FileNotFoundError, too.
      UsageError: one is something else.
    """
    return self._encode_images(
      'encode_image',
      images,
      batch_size=batch_size,
      progress=progress,
      on_error=on_error,
    )

  def encode_text(self, texts: str | Iterable[str]) -> Float[np.ndarray, 'N E']:
    """Returns text features of unit length.

    Args:
      texts: one or many. What is longer than the context is truncated; the
        tokenizer counts those in `tokenizer.truncated`.
    Raises:
      UsageError: one is not a string, or there is no tokenizer.
    """
    texts = [texts] if isinstance(texts, str) else texts
    return self._encode('encode_text', texts, self._tokenize)

  def encode_tokens(
    self, tokens: Int[np.ndarray, 'N T']
  ) -> Float[np.ndarray, 'N E']:
    """Returns text features of unit length, from the ids of a tokenizer.

    Args:
      tokens: rows of the context length, specials and padding included.
    Raises:
      UsageError: rows are of another length, or an id is not in the
        vocabulary.
    """
    return self._encode(
      'encode_text', tokens, lambda rows: np.stack(rows).astype(np.int32)
    )

  def encode_pixels(
    self, pixels: Iterable[UInt8[np.ndarray, 'S S 3']]
  ) -> Float[np.ndarray, 'B E']:
    """Returns image features of unit length, of images of the model's size.

    Args:
      pixels: each is taken as it is, without the model's resizing and crop; an
        iterable is read as it is needed.
    """
    return self._encode('encode_image', pixels, np.stack)

  def classifier(
    self,
    labels: Iterable[str],
    templates: Templates = classifiers.PLAIN,
    *,
    unit_length: bool = False,
  ) -> Float[np.ndarray, 'E C']:
    """Returns a linear classifier's weights, of the text tower (paper, 3.1.2).

    The last ones asked for are kept, so that any number of images costs the
    text tower one run.

    Args:
      labels: names. One that is there twice has two equal columns, which a
        line on stderr says.
      templates: prompts with a slot '{}' for the name, or functions of the
        name, averaged; or one function.
      unit_length: columns without the temperature, which are directions.
    Returns:
      float32, read-only. `image_features @ weights` are logits: their softmax
      is what `classify` returns. With `unit_length`, cosine similarities.
    Raises:
      UsageError: labels are missing or empty, or a template has no slot.
    """
    if isinstance(labels, str):
      raise UsageError(f'labels={labels!r}: give a list of names.')
    labels = list(labels)  # a numpy array has no truth value
    if callable(templates):
      templates = [templates]
    elif not isinstance(templates, str):  # which is refused
      templates = list(templates)
    classifiers.check_labels(labels)
    classifiers.check_templates(templates)
    # A template that is a function is known by its prompts.
    known_as = (
      tuple(classifiers.prompt(x, label) for label in labels)
      if callable(x)
      else x
      for x in templates
    )
    key = tuple(labels), tuple(known_as)
    if key not in self._classifiers:
      print_warnings(classifiers.same_names(labels))
      directions = classifiers.zero_shot_weights(
        self.encode_text, labels, templates
      )
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
    labels: Iterable[str],
    templates: Templates = classifiers.PLAIN,
    *,
    independent: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
    on_error: OnError = 'raise',
  ) -> Float[np.ndarray, 'B C']:
    """Returns the probability of each label, for each image.

    Args:
      images, batch_size, progress, on_error: as in `encode_image`.
      labels, templates: as in `classifier`.
      independent: each label by itself, by a sigmoid, as a model that was
        trained with a sigmoid (SigLIP) means it. By default the labels share
        one softmax, for these models too; of one that is there twice, each
        column has its share.
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
    features = self.encode_image(
      images, batch_size=batch_size, progress=progress, on_error=on_error
    )
    logits = features @ weights
    if independent:
      return classifiers.sigmoid(logits + np.float32(bias))
    return classifiers.softmax(logits)

  def _encode(
    self,
    name: str,
    items: Iterable[Any],
    prepare: Callable[[list[Any]], Any],
    batch_size: int | None = None,
    **options: Any,
  ) -> Any:
    """Sends items through an encoder in batches.

    Args:
      name, options: see `_encoder`.
      prepare: some items to an array with a row for each.
      batch_size: rows on the device at once; None: the model's.
    """
    if batch_size is None:
      batch_size = self._batch_size
    check_batch_size(batch_size)
    function, nothing = self._encoder(name, **options)
    batches = run_in_batches(
      function, items, prepare, batch_size=batch_size, mesh=self._mesh
    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), nothing, *batches)

  def _encode_images(
    self,
    name: str,
    images: ImageInputs,
    *,
    batch_size: int | None = None,
    progress: bool = False,
    on_error: OnError = 'raise',
    **options: Any,
  ) -> Any:
    """Sends images through an encoder; see `encode_image`."""
    reader = ImageReader(self.preprocessing, on_error)
    items = as_image_list(images)
    if progress:
      from tqdm import tqdm

      items = tqdm(items, unit=' images')
    results = self._encode(
      name, enumerate(items), reader.prepare, batch_size, **options
    )
    reader.report()
    return results

  def _tokenize(self, texts: list[Any]) -> np.ndarray:
    for text in texts:
      if not isinstance(text, str):
        raise UsageError(f'a text of type {type(text).__name__}: give strings.')
    return self.tokenizer(texts)


def describe_model(
  kind: str, *facts: str | Mapping[str, Any] | None, origin: str | None
) -> str:
  """Returns what `repr` says of a model.

  Args:
    facts: in their order, '' is left out; the one that is no string describes
      the tokenizer.
    origin: where it was loaded from, where that is known.
  """
  words = []
  for fact in facts:
    if isinstance(fact, Mapping):
      length = fact.get('context_length')
      fact = f'tokenizer {fact.get("kind")} of {length} tokens'
    words.append('no tokenizer' if fact is None else fact)
  where = f' from {origin!r}' if origin else ''
  return f'<{kind}{where}: {", ".join(x for x in words if x)}>'
