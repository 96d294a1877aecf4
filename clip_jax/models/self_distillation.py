"""A dual encoder with what only self-distillation trains: heads, a mask token.

They are in `params['self_distillation']`, which no loaded model has.

Shapes: B images, L patches, M masked ones, D width, F features, K prototypes.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder, unit_length
from clip_jax.models.layers import (
  ACTIVATIONS,
  Dtype,
  accumulation_dtype,
  normal,
)
from clip_jax.models.vision_transformer import Images

# What a head reads of the image tower.
HEADS = {'image_head': 'pooled_image', 'patch_head': 'image_tokens'}


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """The shape of a head (DINO, arXiv 2104.14294, appendix C)."""

  hidden: int
  features: int
  prototypes: int


class Head(nn.Module):
  """An MLP to a few features of unit length, and prototypes to compare with."""

  config: HeadConfig
  dtype: Dtype = jnp.float32

  def setup(self):
    config = self.config
    self.up, self.middle, self.down = (
      nn.Dense(width, kernel_init=normal(0.02), dtype=self.dtype)
      for width in (config.hidden, config.hidden, config.features)
    )
    self.prototypes = self.param(
      'prototypes', normal(1.0), (config.features, config.prototypes)
    )

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B F']:
    """Returns features in float32 (or wider), of unit length."""
    for layer in (self.up, self.middle):
      x = ACTIVATIONS['gelu'](layer(x))
    x = self.down(x)
    return unit_length(x.astype(accumulation_dtype(x.dtype)))


class SelfDistillation(nn.Module):
  """The heads that `names` says, and the token that stands for a patch.

  The mask token goes with the head of patches.
  """

  config: CLIPConfig
  head: HeadConfig
  names: tuple[str, ...]
  dtype: Dtype = jnp.float32

  def setup(self):
    # Flax names a module by the attribute that it is first assigned to.
    for name in self.names:
      setattr(self, name, Head(self.head, self.dtype))
    if 'patch_head' in self.names:
      tower: Any = self.config.image
      self.mask_embedding = self.param(
        'mask_embedding', normal(0.02), (tower.width,)
      )

  def __call__(self, name: str, x: Float[Array, '*B D']) -> Array:
    """Returns what the head `name` makes of a tower's output."""
    return getattr(self, name)(x)

  def make_parameters(self, x: Float[Array, 'B D']) -> None:
    """Makes all parameters, for `DualEncoder.init`."""
    for name in self.names:
      self(name, x)


class SelfDistilledEncoder(DualEncoder):
  """A dual encoder that also encodes views of its images for heads.

  Attributes:
    head: of each of the heads.
    heads: those that there are, of `HEADS`.
  """

  head: HeadConfig = HeadConfig(2048, 256, 65_536)
  heads: tuple[str, ...] = tuple(HEADS)

  def setup(self):
    super().setup()
    self.self_distillation = SelfDistillation(
      self.config, self.head, self.heads, self.dtype
    )

  def __call__(self, images: Images, tokens: Any, *args: Any, **kwargs: Any):
    """Returns what `DualEncoder.__call__` does."""
    outputs = super().__call__(images, tokens, *args, **kwargs)
    if self.is_initializing():
      width = self.config.image.pooled_width
      self.self_distillation.make_parameters(jnp.zeros((1, width), self.dtype))
    return outputs

  def first_teacher(self, params: Any) -> dict[str, Any]:
    """Returns the arrays of a teacher that is the student, and no more.

    Returns:
      'params': of the image tower and the heads, with their paths; 'centre':
      [K] of each head, zeros until it has seen a batch.
    """
    own = params['self_distillation']
    return {
      'params': {
        'image': params['image'],
        'self_distillation': {head: own[head] for head in self.heads},
      },
      'centre': {
        head: jnp.zeros_like(own[head]['prototypes'][0]) for head in self.heads
      },
    }

  def view_features(
    self,
    images: Images,
    heads: Collection[str],
    at: Int[Array, 'B M'] | None = None,
    masked: bool = False,
  ) -> dict[str, Array]:
    """Returns what heads make of views of images, in one pass of the tower.

    Args:
      images: normalised.
      heads: which, of `HEADS`.
      at: the patches that the head of patches reads.
      masked: whether these are hidden from the tower: the mask token takes
        their place, before positions are added.
    Returns:
      'image_head' [B, F], 'patch_head' [B, M, F]; unit length.
    """
    tower: Any = self.config.image
    names = frozenset(HEADS[head] for head in heads)
    with self._masks(at) if masked else contextlib.nullcontext():
      outputs = self.outputs(images, jnp.zeros((0, 0), jnp.int32), names)
    if 'image_tokens' in outputs:
      assert at is not None
      patches = outputs['image_tokens'][:, int(tower.class_token) :]
      outputs['image_tokens'] = jnp.take_along_axis(
        patches, at[..., None], axis=1
      )
    return {
      head: self.self_distillation(head, outputs[HEADS[head]]) for head in heads
    }

  @contextlib.contextmanager
  def _masks(self, at: Any) -> Iterator[None]:
    """A context in which the mask token is in the place of some patches."""
    token = self.self_distillation.mask_embedding

    def replace(call, args, kwargs, context):
      x = call(*args, **kwargs)
      if context.module.name == 'patch_embedding':
        hidden = (at[..., None] == jnp.arange(x.shape[1])).any(1)  # B L
        x = jnp.where(hidden[..., None], token.astype(x.dtype), x)
      return x

    with nn.intercept_methods(replace):
      yield
