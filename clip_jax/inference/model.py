"""A model in use (DESIGN, section 3.5): `load` a reference, encode, classify.

Shapes: B images, S pixels a side, N texts, T tokens, E the joint space, C
labels, L patches, D width of the image tower.
"""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image

from clip_jax import checkpoints, tokenizers
from clip_jax.checkpoints import Description
from clip_jax.data.images import (
  CorruptImageError,
  Preprocessing,
  preprocess,
)
from clip_jax.errors import UsageError
from clip_jax.inference import classifier as classifiers
from clip_jax.inference import unrolled
from clip_jax.inference.batching import run_in_batches
from clip_jax.inference.references import recognise
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder, normalize, unit_length
from clip_jax.parallel.mesh import replicated

BATCH_SIZE = 64  # rows on the device at once, unless asked otherwise
_KEPT_CLASSIFIERS = 8

ImageInput = (
  str | os.PathLike | bytes | Image.Image | UInt8[np.ndarray, 'H W 3']
)
ImageInputs = ImageInput | UInt8[np.ndarray, 'B H W 3'] | Iterable[ImageInput]


class Model:
  """Two towers with their tokenizer and preprocessing, as numpy sees them.

  Instances are cheap: functions compiled for one serve all others of the same
  shapes, dtype and preprocessing.

  Attributes:
    config: the shapes.
    params: the parameter tree, on the device.
    module: the Flax module, for `module.apply(variables, images, tokens)`.
    tokenizer: texts to int32 [N, T].
    preprocessing: how an image becomes uint8 [S, S, 3] and then floats.
    step: updates done in training, where that is known.
    origin: where it was loaded from, where that is known.
  """

  def __init__(
    self,
    description: Description,
    params: Any,
    *,
    mesh: Mesh | None = None,
    dtype: str = 'float32',
    batch_size: int = BATCH_SIZE,
    step: int | None = None,
    origin: str | None = None,
  ):
    """A model from its parts; `load` is the usual way.

    Args:
      description: what the arrays mean.
      params: numpy or JAX arrays; ones that are sharded over `mesh` stay so.
      mesh: its batch axes share each batch; None, the default device.
      dtype: of the towers' arithmetic. 'float32' is full precision on every
        platform; 'bfloat16' is what accelerators are fast in.
      batch_size: rows on the device at once.
      step, origin: for those who ask where the model came from.
    Raises:
      UsageError: the dtype is unknown, or the batch size below 1.
    """
    if dtype not in ('float32', 'bfloat16'):
      raise UsageError(f'dtype={dtype!r}: use float32 or bfloat16.')
    if batch_size < 1:
      raise UsageError(f'batch_size={batch_size} must be at least 1.')
    self.config: CLIPConfig = description.model
    self.preprocessing: Preprocessing = description.preprocessing
    self.description = description
    self.step = step
    self.origin = origin
    self.params = _placed(params, mesh)
    self._mesh = mesh
    self._batch_size = batch_size
    self._compiled = _compile(
      self.config,
      dtype,
      self.preprocessing.mean,
      self.preprocessing.std,
      mesh,
      unrolled.pays(self.params),
    )
    self.module: DualEncoder = self._compiled.module
    self._classifiers: collections.OrderedDict[Any, np.ndarray] = (
      collections.OrderedDict()
    )

  @property
  def variables(self) -> dict[str, Any]:
    """What `module.apply` takes."""
    return {'params': self.params}

  @functools.cached_property
  def _operands(self) -> Any:
    """The parameters in the form that the compiled functions take."""
    if self._compiled.unrolled:
      return unrolled.unroll(self.params)
    return self.params

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer of the description."""
    return _tokenizer(json.dumps(dict(self.description.tokenizer)))

  @property
  def logit_scale(self) -> float:
    """What cosine similarities are multiplied by: 1 / temperature."""
    return float(np.exp(jax.device_get(self.params['logit_scale'])))

  def encode_image(self, images: ImageInputs) -> Float[np.ndarray, 'B E']:
    """Image features of unit length.

    Args:
      images: one or many of: a path, encoded bytes, a PIL image, uint8
        [H, W, 3]; or uint8 [B, H, W, 3]. An iterable is read as it is needed.
    Raises:
      CorruptImageError: one cannot be read; the message names it.
      UsageError: one is something else.
    """
    return self._run_images(self._compiled.encode_image, images)

  def encode_text(self, texts: str | Iterable[str]) -> Float[np.ndarray, 'N E']:
    """Text features of unit length.

    Args:
      texts: one or many. What is longer than the context is cut; the
        tokenizer counts those in `tokenizer.truncated`.
    Raises:
      UsageError: one is not a string.
    """
    compiled = functools.partial(self._compiled.encode_text, self._operands)
    batches = run_in_batches(
      compiled,
      [texts] if isinstance(texts, str) else texts,
      self._tokenize,
      batch_size=self._batch_size,
      mesh=self._mesh,
    )
    return self._rows(batches, (self.config.embed_dim,))

  def image_tokens(
    self, images: ImageInputs, layer: int = -2
  ) -> Float[np.ndarray, 'B L D']:
    """Patch tokens of the image tower, as a vision-language model reads them.

    The residual stream as it leaves a block, before the last LayerNorm: row
    by row, without the class token.

    Args:
      images: as in `encode_image`.
      layer: a block, from 0; negative ones count from the end (-1 is the last
        block, and -2 the one that LLaVA reads).
    Raises:
      UsageError: there is no such block.
    """
    depth, index = self.config.image.depth, layer
    if index < 0:
      index += depth
    if not 0 <= index < depth:
      raise UsageError(
        f'layer={layer}: the image tower has {depth} blocks, so use '
        f'0 to {depth - 1}, or -{depth} to -1 from the end.'
      )
    function = functools.partial(self._compiled.image_tokens, layer=index)
    shape = (self.config.image.patches, self.config.image.width)
    return self._run_images(function, images, shape)

  def classifier(
    self,
    labels: Sequence[str],
    templates: Sequence[str] = classifiers.PLAIN,
  ) -> Float[np.ndarray, 'E C']:
    """Weights of a linear classifier, made by the text tower (paper, 3.1.2).

    The last ones asked for are kept, so that any number of images costs the
    text tower one run.

    Args:
      labels: different names.
      templates: prompts with a slot '{}' for the name, averaged.
    Returns:
      float32, read-only, columns of unit length: `image_features @ weights`
      are cosine similarities. `classify` multiplies them by `logit_scale`.
    Raises:
      UsageError: labels are missing, empty, or repeated; or a template has no
        slot.
    """
    if isinstance(labels, str):
      raise UsageError(f'labels={labels!r}: give a list of names.')
    classifiers.check_templates(templates)
    labels, templates = tuple(labels), tuple(templates)
    _check_different(labels)
    key = (labels, templates)
    if key not in self._classifiers:
      weights = classifiers.zero_shot_weights(
        self.encode_text, labels, templates
      )
      weights.setflags(write=False)
      self._classifiers[key] = weights
    self._classifiers.move_to_end(key)
    while len(self._classifiers) > _KEPT_CLASSIFIERS:
      self._classifiers.popitem(last=False)
    return self._classifiers[key]

  def classify(
    self,
    images: ImageInputs,
    labels: Sequence[str],
    templates: Sequence[str] = classifiers.PLAIN,
  ) -> Float[np.ndarray, 'B C']:
    """The probability of each label, for each image.

    Args:
      images: as in `encode_image`.
      labels, templates: as in `classifier`.
    Returns:
      float32; rows sum to 1.
    """
    weights = self.classifier(labels, templates)
    logits = self.logit_scale * (self.encode_image(images) @ weights)
    return classifiers.softmax(logits)

  def _run_images(
    self,
    function: Callable[..., jax.Array],
    images: ImageInputs,
    shape: tuple[int, ...] | None = None,
  ) -> np.ndarray:
    batches = run_in_batches(
      functools.partial(function, self._operands),
      enumerate(_many(images)),
      self._prepare,
      batch_size=self._batch_size,
      mesh=self._mesh,
    )
    return self._rows(batches, shape or (self.config.embed_dim,))

  def _rows(
    self, batches: Iterable[np.ndarray], shape: tuple[int, ...]
  ) -> np.ndarray:
    return np.concatenate([np.empty((0, *shape), np.float32), *batches])

  def _prepare(self, images: list[tuple[int, Any]]) -> np.ndarray:
    return np.stack(
      [_prepared(image, i, self.preprocessing) for i, image in images]
    )

  def _tokenize(self, texts: list[Any]) -> np.ndarray:
    for text in texts:
      if not isinstance(text, str):
        raise UsageError(f'a text of type {type(text).__name__}: give strings.')
    return self.tokenizer(texts)


def load(
  reference: str | os.PathLike,
  *,
  dtype: str = 'float32',
  mesh: Mesh | None = None,
  batch_size: int = BATCH_SIZE,
) -> Model:
  """The model that a reference stands for (DESIGN, section 3.3).

  Args:
    reference: a run's workdir (its newest complete checkpoint), or one
      checkpoint step inside it.
    dtype, mesh, batch_size: see `Model`.
  Raises:
    UsageError: there is no model there.
    FailureError: there is one, and it cannot be read.
  """
  _, path = recognise(reference)
  params, description, step = checkpoints.load_params(path)
  return Model(
    description,
    params,
    mesh=mesh,
    dtype=dtype,
    batch_size=batch_size,
    step=step,
    origin=os.fspath(path),
  )


@dataclasses.dataclass(frozen=True)
class _Compiled:
  """Jitted functions of parameters and a batch; see `_compile`."""

  module: DualEncoder
  unrolled: bool
  encode_image: Callable[..., jax.Array]
  encode_text: Callable[..., jax.Array]
  image_tokens: Callable[..., jax.Array]


@functools.lru_cache(maxsize=16)
def _compile(
  config: CLIPConfig,
  dtype: str,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
  mesh: Mesh | None,
  unroll: bool,
) -> _Compiled:
  """The functions that all models with these arguments share."""
  module = DualEncoder(config, jnp.dtype(dtype))
  runner = module.clone(unroll=unroll)
  # Accelerators would round float32 products to bfloat16 or TF32.
  precision = 'highest' if dtype == 'float32' else 'default'

  def apply(params, x, method, *args) -> Any:
    with jax.default_matmul_precision(precision):
      return runner.apply(
        {'params': unrolled.restore(params)}, x, *args, method=method
      )

  def encode_image(params, pixels):
    images = normalize(pixels, mean, std)
    return unit_length(apply(params, images, 'encode_image'))

  def encode_text(params, tokens):
    return unit_length(apply(params, tokens, 'encode_text'))

  def image_tokens(params, pixels, layer):
    images = normalize(pixels, mean, std)
    return apply(params, images, 'image_tokens', layer)

  jit = jax.jit
  if mesh is not None:  # every process gets the whole result
    jit = functools.partial(jax.jit, out_shardings=replicated(mesh))
  return _Compiled(
    module=module,
    unrolled=unroll,
    encode_image=jit(encode_image),
    encode_text=jit(encode_text),
    image_tokens=jit(image_tokens, static_argnames='layer'),
  )


@functools.lru_cache(maxsize=4)
def _tokenizer(description: str) -> tokenizers.Tokenizer:
  return tokenizers.from_description(json.loads(description))


def _placed(params: Any, mesh: Mesh | None) -> Any:
  """Parameters on the device; arrays that JAX holds stay where they are."""

  def place(leaf):
    if isinstance(leaf, jax.Array):
      return leaf
    return jax.device_put(leaf, None if mesh is None else replicated(mesh))

  return jax.tree.map(place, params)


def _many(images: ImageInputs) -> Iterable[Any]:
  """One image or many, as many."""
  if isinstance(images, np.ndarray):
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
      raise UsageError(
        f'an array of {images.dtype} {list(images.shape)}: give images as '
        'uint8 [H, W, 3] or [B, H, W, 3].'
      )
    return [images] if images.ndim == 3 else images
  if isinstance(images, str | bytes | os.PathLike | Image.Image):
    return [images]
  return images


def _prepared(
  image: Any, index: int, preprocessing: Preprocessing
) -> UInt8[np.ndarray, 'S S 3']:
  """One image as the model reads it; an error names the image."""
  if isinstance(image, str | os.PathLike):
    name = os.fspath(image)
  else:
    name = f'image {index}'
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise UsageError(
        f'{name} is an array of {image.dtype} {list(image.shape)}: give '
        'uint8 [H, W, 3].'
      )
  elif not isinstance(image, str | bytes | os.PathLike | Image.Image):
    raise UsageError(
      f'{name} is of type {type(image).__name__}: give a path, bytes, a PIL '
      'image or uint8 [H, W, 3].'
    )
  try:
    return preprocess(image, preprocessing)
  except CorruptImageError as error:
    if str(error).startswith(str(name)):
      raise
    raise CorruptImageError(f'{name}: {error}') from error


def _check_different(labels: Sequence[str]) -> None:
  counts = collections.Counter(labels)
  twice = [label for label, count in counts.items() if count > 1]
  if twice:
    raise UsageError(f'label {twice[0]!r} is there {counts[twice[0]]} times.')
