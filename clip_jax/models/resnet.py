"""The image tower as the paper's modified ResNet (section 2.4).

It differs from a plain ResNet in its stem of three convolutions, in average
pooling (anti-aliasing) where that has strided convolutions, and in attention
pooling at the end.

Shapes: B images, S pixels a side, H W positions, C channels, D = 32 x width.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from clip_jax.models.config import ResNetConfig
from clip_jax.models.kernels import REMAT_POLICIES, remat_policies
from clip_jax.models.layers import (
  Dtype,
  QueryAttention,
  accumulation_dtype,
  normal,
)

_EPS = 1e-5
_MOMENTUM = 0.9  # of the running statistics: how much of the old stays


class ResNet(nn.Module):
  """Turns the normalised pixels of an image into one vector."""

  config: ResNetConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'

  def setup(self):
    config = self.config
    self.stem = Stem(config.width, self.dtype)
    policies = iter(remat_policies(self.remat, sum(config.layers)))
    self.stage1, self.stage2, self.stage3, self.stage4 = (
      [
        _block(next(policies))(
          config.width * 2**stage,
          2 if stage and i == 0 else 1,
          self.dtype,
        )
        for i in range(count)
      ]
      for stage, count in enumerate(config.layers)
    )
    self.position_embedding = self.param(
      'position_embedding',
      normal(config.pooled_width**-0.5),
      (config.patches + 1, config.pooled_width),
    )
    self.attention_pool = QueryAttention(config.heads, self.dtype)

  def __call__(
    self, images: Float[Array, 'B S S 3'], train: bool = False
  ) -> Float[Array, 'B D']:
    """Returns the last map pooled by attention, before its projection.

    The query is the mean over positions.
    """
    return self.pooled_and_tokens(images, train)[0]

  def pooled_and_tokens(
    self, images: Float[Array, 'B S S 3'], train: bool = False
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B L D']]:
    """Returns the pooled vector, and the positions of the last map."""
    x = self.stages(images, train)[-1]
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])  # B H*W D
    x = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
    x = x + self.position_embedding.astype(x.dtype)
    return self.attention_pool(x[:, 0], x).reshape(x.shape[0], -1), tokens

  def stages(
    self, images: Float[Array, 'B S S 3'], train: bool = False
  ) -> list[Float[Array, 'B H W C']]:
    """Returns the maps after the stem and after each of the four stages."""
    x = self.stem(images.astype(self.dtype), train)
    maps = [x]
    for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
      for block in stage:
        x = block(x, train)
      maps.append(x)
    return maps


class Stem(nn.Module):
  """Three convolutions and an average pool: a quarter of the resolution."""

  width: int
  dtype: Dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B S S 3'], train: bool
  ) -> Float[Array, 'B H W C']:
    for i, width, stride in (
      (1, self.width // 2, 2),
      (2, self.width // 2, 1),
      (3, self.width, 1),
    ):
      x = _conv(width, 3, self.dtype, f'conv{i}', stride)(x)
      x = nn.relu(BatchNorm(name=f'bn{i}')(x, train))
    return _halve(x)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut, four times wider."""

  width: int
  stride: int
  dtype: Dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B H W C'], train: bool
  ) -> Float[Array, 'B I J E']:
    shortcut = x
    h = _conv(self.width, 1, self.dtype, 'conv1')(x)
    h = nn.relu(BatchNorm(name='bn1')(h, train))
    h = _conv(self.width, 3, self.dtype, 'conv2')(h)
    h = nn.relu(BatchNorm(name='bn2')(h, train))
    if self.stride > 1:
      h, shortcut = _halve(h), _halve(shortcut)
    h = _conv(4 * self.width, 1, self.dtype, 'conv3')(h)
    # At the start, a block is the identity, as in OpenAI's code.
    h = BatchNorm(nn.initializers.zeros, name='bn3')(h, train)
    if self.stride > 1 or x.shape[-1] != 4 * self.width:
      convolution = _conv(4 * self.width, 1, self.dtype, 'shortcut_conv')
      shortcut = convolution(shortcut)
      shortcut = BatchNorm(name='shortcut_bn')(shortcut, train)
    return nn.relu(h + shortcut)


def _block(policy: str) -> Any:
  """Returns the class of a block with a remat policy."""
  if policy == 'none':
    return Bottleneck
  return nn.remat(
    Bottleneck, policy=REMAT_POLICIES[policy], static_argnums=(2,)
  )


class BatchNorm(nn.Module):
  """Batch normalisation in float32; the result has the dtype of the input.

  In training, the statistics are those of the global batch, whatever devices
  hold it, and `batch_stats` keeps their running mean, with the variance
  unbiased and the batches counted, as PyTorch does.
  """

  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B H W C'], train: bool
  ) -> Float[Array, 'B H W C']:
    shape = x.shape[-1:]
    scale = self.param('scale', self.scale_init, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    stats = 'batch_stats'
    mean = self.variable(stats, 'mean', jnp.zeros, shape)
    var = self.variable(stats, 'var', jnp.ones, shape)
    count = self.variable(stats, 'count', jnp.zeros, (), jnp.int32)
    h = x.astype(accumulation_dtype(x.dtype))
    if train:
      batch_mean, batch_var = h.mean((0, 1, 2)), h.var((0, 1, 2))
      if not self.is_initializing():
        n = x.size // x.shape[-1]
        unbiased = batch_var * n / max(n - 1, 1)
        mean.value += (1 - _MOMENTUM) * (batch_mean - mean.value)
        var.value += (1 - _MOMENTUM) * (unbiased - var.value)
        count.value += 1
    else:
      batch_mean, batch_var = mean.value, var.value
    gain = scale / jnp.sqrt(batch_var + _EPS)
    return ((h - batch_mean) * gain + bias).astype(x.dtype)


def _conv(
  width: int, size: int, dtype: Dtype, name: str, stride: int = 1
) -> nn.Conv:
  return nn.Conv(
    width,
    (size, size),
    strides=(stride, stride),
    padding=[(size // 2, size // 2)] * 2,
    use_bias=False,
    dtype=dtype,
    name=name,
  )


def _halve(x: Float[Array, 'B H W C']) -> Float[Array, 'B I J C']:
  return nn.avg_pool(x, (2, 2), (2, 2))
