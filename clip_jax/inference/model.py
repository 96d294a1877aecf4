"""A model in use: encodes images and texts, and classifies.

Shapes: B images, S pixels a side, N texts, T tokens, E the joint space, C
labels, L patches, D width of the image tower.
"""

import functools
import json
import math
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clip_jax import tokenizers
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.inference import cpu_layout
from clip_jax.inference.encoders import make_encoders
from clip_jax.inference.inputs import ImageInputs
from clip_jax.inference.zero_shot import ZeroShotModel, describe_model
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig, DecoderConfig, ResNetConfig
from clip_jax.models.description import (
  OTHER_TOWER,
  WITH_ARTICLE,
  Description,
)
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.image_tokens import (
  check_options,
  layer_indices,
  token_shape,
)
from clip_jax.parallel.mesh import replicated

BATCH_SIZE = 64  # rows on the device at once, unless asked otherwise

# A decoder reads captions joined to rows of this many tokens at most: the work
# of attention grows with the square of a row's length.
_PART_TOKENS = 128


class Model(ZeroShotModel):
  """Two towers with their tokenizer and preprocessing, as numpy sees them.

  Instances are cheap: functions compiled for one serve all others of the same
  shapes, dtype and preprocessing.

  Attributes:
    config: the shapes.
    module: the Flax module, for `module.apply(variables, images, tokens)`.
    tokenizer: texts to int32 [N, T].
    preprocessing: how an image becomes uint8 [S, S, 3] (or of native aspect
      `Patches`) and then floats.
    step: updates done in training, where that is known.
    origin: where it was loaded from, where that is known.
  """

  def __init__(
    self,
    description: Description,
    variables: Mapping[str, Any],
    *,
    mesh: Mesh | None = None,
    dtype: str = 'float32',
    batch_size: int = BATCH_SIZE,
    step: int | None = None,
    origin: str | None = None,
  ):
    """Makes a model of its parts; `clip_jax.load` is the usual way.

    Args:
      description: what the arrays mean.
      variables: collections by name of numpy or JAX arrays; floats become
        float32, and arrays that are sharded over `mesh` stay so. A CPU may
        go on using the memory of numpy arrays: do not change them.
      mesh: its batch axes share each batch; None, the default device.
      dtype: of the towers' arithmetic. 'float32' is full precision on every
        platform; 'bfloat16' is what accelerators are fast in.
      batch_size: rows on the device at once.
      step, origin: for those who ask where the model came from.
    Raises:
      UsageError: the dtype is unknown, or the batch size below 1.
    """
    super().__init__(batch_size, mesh)
    if dtype not in ('float32', 'bfloat16'):
      raise UsageError(f'dtype={dtype!r}: use float32 or bfloat16.')
    self.config: CLIPConfig = description.model
    self.preprocessing: Preprocessing = description.preprocessing
    self.description = description
    self.step = step
    self.origin = origin
    self._variables = _to_device(variables, mesh)
    self._dtype = dtype
    self._unrolled = False  # until the first encoding on CPUs
    self._lock = threading.Lock()
    self._encoders = make_encoders(
      self.config,
      dtype,
      self.preprocessing.mean,
      self.preprocessing.std,
      mesh,
      cpu_layout.is_on_cpus(self._variables),
    )
    self.module: DualEncoder = self._encoders.module

  def __repr__(self) -> str:
    with self._lock:
      devices = jax.tree.leaves(self._variables)[0].devices()
    step = '' if self.step is None else f'step {self.step:,}'
    return describe_model(
      'Model',
      presets.name_of(self.config) or _shape_of(self.config),
      _images_of(self.description),
      f'{self.config.embed_dim} dimensions',
      self.description.tokenizer,
      f'{self._dtype} on {_devices(devices)}',
      step,
      origin=self.origin,
    )

  @property
  def params(self) -> Any:
    """The parameter tree, on the device."""
    return self.variables['params']

  @property
  def variables(self) -> dict[str, Any]:
    """The argument of `module.apply`: 'params', and a ResNet's 'batch_stats'.

    The dictionaries are the caller's own: changing them does not change the
    model. On a CPU, a model that has encoded something keeps its blocks apart,
    and stacks them anew whenever this is asked for.
    """
    with self._lock:
      if self._unrolled:
        return cpu_layout.stack(self._variables)
      # Copied dictionaries: the first encoding on a CPU empties ours.
      return jax.tree.map(lambda leaf: leaf, self._variables)

  @property
  def _encoder_variables(self) -> dict[str, Any]:
    """The variables in the form that the encoders take."""
    with self._lock:  # one of the threads that encode unrolls them
      if self._encoders.unrolled and not self._unrolled:
        self._variables = cpu_layout.unroll(self._variables)
        self._unrolled = True
      return self._variables

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer of the description.

    Raises:
      UsageError: there is none, or the text tower was trained with another:
        it has fewer ids, or another one ends a text.
    """
    where = self.origin or 'this model'
    self._check_has('text')
    if self.description.tokenizer is None:
      raise UsageError(
        f'{where} came without a tokenizer, so it reads token ids only: put '
        "its tokenizer's files beside the weights, or name one, as in "
        'tokenizer=clip.'
      )
    tokenizer = _tokenizer(json.dumps(dict(self.description.tokenizer)))
    if tokenizer.vocab_size > self.config.text.vocab_size:
      raise UsageError(
        f'the tokenizer of {where} has {tokenizer.vocab_size:,} ids, and its '
        f'text tower {self.config.text.vocab_size:,}.'
      )
    text = self.config.text
    if text.pooling == 'end' and tokenizer.eos_id != text.end_token:
      raise UsageError(
        f'the tokenizer of {where} ends a text with {tokenizer.eos_id}, and '
        f'its text tower looks for {text.end_token}: it is of another model.'
      )
    return tokenizer

  @property
  def logit_scale(self) -> float:
    with self._lock:
      scale = self._variables['params']['logit_scale']
    return float(np.exp(jax.device_get(scale)))

  @property
  def logit_bias(self) -> float | None:
    with self._lock:
      bias = self._variables['params'].get('logit_bias')
    return None if bias is None else float(jax.device_get(bias))

  def encode_image_with_pooled(
    self, images: ImageInputs
  ) -> tuple[Float[np.ndarray, 'B D'], Float[np.ndarray, 'B E']]:
    """Returns, beside the image features, those that probes are fitted on.

    Of a ViT the pooled token before the projection into the joint space (paper,
    appendix A.3, I_f of figure 3); of a ResNet, whose pooling projects, the
    features before they are brought to unit length.

    Args:
      images: as in `encode_image`.
    Returns:
      Features of any length, and those of unit length that are compared with
      texts.
    Raises:
      CorruptImageError, UsageError: as `encode_image`.
    """
    return self._encode_images('encode_image_with_pooled', images)

  def encode_tokens(
    self, tokens: Int[np.ndarray, 'N T']
  ) -> Float[np.ndarray, 'N E']:
    self._check_has('text')
    text = self.config.text
    if tokens.shape[1] != text.context_length:
      raise UsageError(
        f'rows of {tokens.shape[1]} tokens: this model reads '
        f'{text.context_length}.'
      )
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < text.vocab_size:
      raise UsageError(
        f'token ids from {tokens.min()} to {tokens.max()}: this model has 0 '
        f'to {text.vocab_size - 1}.'
      )
    return super().encode_tokens(tokens)

  @overload
  def image_tokens(
    self,
    images: ImageInputs,
    layer: int = -2,
    *,
    class_token: bool = False,
    final_norm: bool = False,
  ) -> Float[np.ndarray, 'B L D']: ...

  @overload
  def image_tokens(
    self,
    images: ImageInputs,
    layer: Sequence[int],
    *,
    class_token: bool = False,
    final_norm: bool = False,
  ) -> list[Float[np.ndarray, 'B L D']]: ...

  def image_tokens(
    self,
    images: ImageInputs,
    layer: int | Sequence[int] = -2,
    *,
    class_token: bool = False,
    final_norm: bool = False,
  ) -> Any:
    """Returns patch tokens of the image tower, for vision-language models.

    The residual stream as it leaves a block, before the last LayerNorm: row
    by row, without the class token. Of a ResNet, the map after a stage. Where
    images keep their aspect (NaFlex), L is the most patches, and those after an
    image's own (`data.images.fit_grid` says how many) are zeros.

    Args:
      images: as in `encode_image`.
      layer: a block (or stage), from 0; negative ones count from the end (-1
        is the last block, and -2 the one that LLaVA reads). Of several, as in
        (-2, -4), the result is a list in their order, from one forward pass.
      class_token: put the class token before the patches.
      final_norm: send the tokens through the tower's last LayerNorm, as
        Idefics and PaliGemma read those of the last block.
    Raises:
      UsageError: there is no such block, no class token, or, of a ResNet, no
        such LayerNorm.
    """
    self._check_has('image')
    check_options(self.config, class_token=class_token, final_norm=final_norm)
    asked = list(layer) if isinstance(layer, Iterable) else [layer]
    indices = layer_indices(self.config, asked)
    ascending = sorted(set(indices))
    states = self._encode_images(
      'image_tokens',
      images,
      layers=tuple(ascending),
      class_token=class_token,
      final_norm=final_norm,
    )
    wanted = [states[ascending.index(i)] for i in indices]
    return wanted if isinstance(layer, Iterable) else wanted[0]

  @property
  def classifies_by_captions(self) -> bool:
    """True if the model predicts captions and has no trained text features."""
    return self.config.decoder is not None and self.config.decoder.only

  def caption_scores(
    self, images: ImageInputs, texts: str | Sequence[str]
  ) -> Float[np.ndarray, 'B N']:
    """Returns how well each text describes each image, by the decoder.

    It is ln p(text | image) in nats of a decoder that predicts one token after
    another (CoCa, and the language model of the paper's figure 2); of a bag of
    words, how near the text's words are to those predicted, at most 0. The
    softmax of a row is the probability of each text, if they are alike likely.

    Args:
      images: as in `encode_image`.
      texts: one or many; truncated where they are too long.
    Raises:
      UsageError: the model has no caption decoder.
    """
    self._decoder_config()
    listed: list[Any] = [texts] if isinstance(texts, str) else list(texts)
    tokens = self._tokenize(listed)
    parts = _caption_parts(tokens, self.config.text.end_token)
    scores = self._encode_images('caption_scores', images, tokens=parts)
    return scores[:, : len(listed)]

  def caption(self, images: ImageInputs) -> list[str]:
    """Returns a caption for each image: always the likeliest next token.

    Args:
      images: as in `encode_image`.
    Raises:
      UsageError: the model has no decoder that predicts one token after
        another.
    """
    if self._decoder_config().reads == 'pooled_image':
      raise UsageError(
        f'{self.origin or "this model"} predicts a bag of words, which has no '
        'order: `Model.caption_scores` compares captions.'
      )
    tokenizer, end = self.tokenizer, self.config.text.end_token
    rows = self._encode_images('captions', images)
    lengths = np.argmax(rows == end, axis=1)
    lengths[~(rows == end).any(axis=1)] = rows.shape[1]
    return [
      tokenizer.decode(row[row != tokenizer.bos_id]).strip()
      for row in (row[:n] for row, n in zip(rows, lengths, strict=True))
    ]

  def _decoder_config(self) -> DecoderConfig:
    """Returns the shape of the caption decoder.

    Raises:
      UsageError: there is none.
    """
    if self.config.decoder is None:
      raise UsageError(
        f'{self.origin or "this model"} has no caption decoder: one that was '
        'trained with objective.added.captioning or a predictive '
        'objective.name has.'
      )
    return self.config.decoder

  def _encoder(
    self, name: str, **options: Any
  ) -> tuple[Callable[[jax.Array], Any], Any]:
    self._check_has('text' if name == 'encode_text' else 'image')
    if name == 'encode_text' and self.classifies_by_captions:
      raise UsageError(
        f'{self.origin or "this model"} was trained to predict captions, and '
        'its text features mean nothing: `clip-jax eval --task=zero_shot` and '
        '`Model.caption_scores` ask its decoder.'
      )
    encode = getattr(self._encoders, name)
    nothing: Any = np.empty((0, self.config.embed_dim), np.float32)
    if name == 'encode_image_with_pooled':
      width = _pooled_width(self.config)
      nothing = np.empty((0, width), np.float32), nothing
    if name == 'caption_scores':
      width = math.prod(options['tokens'].shape[:2])
      nothing = np.empty((0, width), np.float32)
    if name == 'captions':
      nothing = np.empty((0, self.config.text.context_length), np.int32)
    if name == 'image_tokens':
      shapes = (
        token_shape(self.description, i, options['class_token'])
        for i in options['layers']
      )
      nothing = [np.empty((0, *shape), np.float32) for shape in shapes]
    variables = self._encoder_variables
    return functools.partial(encode, variables, **options), nothing

  def _check_has(self, tower: str) -> None:
    """Refuses what a tower that did not come along would be needed for.

    Raises:
      UsageError: the model has the other tower alone.
    """
    if tower in self.description.absent:
      raise UsageError(
        f'{self.origin or "this model"} holds '
        f'{WITH_ARTICLE[OTHER_TOWER[tower]]} tower alone: '
        f'{tower}s cannot be encoded with it; load the whole model that it is '
        'from.'
      )


def _caption_parts(
  tokens: Int[np.ndarray, 'N T'], end_token: int
) -> Int[np.ndarray, 'P M L']:
  """Returns captions in parts of about `_PART_TOKENS`, without their padding.

  The last part is filled up with copies of the first caption.
  """
  length = int(np.argmax(tokens == end_token, axis=1).max(initial=0)) + 1
  in_part = min(max(1, _PART_TOKENS // length), max(1, len(tokens)))
  missing = -len(tokens) % in_part
  tokens = np.concatenate([tokens, np.repeat(tokens[:1], missing, axis=0)])
  return tokens[:, :length].reshape(-1, in_part, length)


@functools.lru_cache(maxsize=4)
def _tokenizer(description: str) -> tokenizers.Tokenizer:
  return tokenizers.from_description(json.loads(description))


def _to_device(
  variables: Mapping[str, Any], mesh: Mesh | None
) -> dict[str, Any]:
  """Returns arrays on the device, floats as float32; JAX's stay as they are."""

  def put(leaf):
    if isinstance(leaf, jax.Array):
      return leaf
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      leaf = np.asarray(leaf, np.float32)
    sharding = None if mesh is None else replicated(mesh)
    return jax.device_put(leaf, sharding, may_alias=True)

  return jax.tree.map(put, dict(variables))


def _shape_of(config: CLIPConfig) -> str:
  """Returns a model that is no preset: its image tower, and its text tower."""
  image, text = config.image, config.text
  kind = 'ResNet'
  if not isinstance(image, ResNetConfig):
    kind = f'ViT/{image.patch_size} {image.depth} x {image.width}'
  return f'{kind}, text {text.depth} x {text.width}'


def _devices(devices: Collection[jax.Device]) -> str:
  """Returns the devices in words: 'cpu', or '8 x tpu'."""
  platform = next(iter(devices)).platform
  return platform if len(devices) == 1 else f'{len(devices)} x {platform}'


def _pooled_width(config: CLIPConfig) -> int:
  """Returns D of `Model.encode_image_with_pooled`."""
  if isinstance(config.image, ResNetConfig):
    return config.embed_dim
  return config.image.pooled_width


def _images_of(description: Description) -> str:
  """Returns the images that a model reads: '224 pixels'."""
  if description.preprocessing.is_native:
    return f'native aspect, {description.preprocessing.max_patches:,} patches'
  return f'{description.model.image.image_size} pixels'
