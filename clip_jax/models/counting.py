"""Counts the parameters of a model, and the FLOPs of an example.

Both are by formula, so that a table of all published shapes is there at once.
Of FLOPs, only matrix products and convolutions count, a multiply-add as 2, and
a causal mask saves nothing. That is what a dense implementation on matrix units
does, and the convention of open_clip's model_profile.csv. Norms, softmax and
activations add under four percent.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.errors import FailureError
from clip_jax.models.config import (
  CLIPConfig,
  LoRAConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.layers import TransformerConfig
from clip_jax.trees import first_difference, flat

# Dense bfloat16 FLOP/s of one device, by its `device_kind` (vendors' data
# sheets; where these state them with sparsity, half of that). Other devices,
# such as CPUs, are not in the table.
PEAK_FLOPS = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,  # v5e
  'TPU v5': 459e12,  # v5p
  'TPU v6 lite': 918e12,  # v6e
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA L4': 121e12,
  'NVIDIA L40S': 362e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA H200 NVL': 835e12,
  'NVIDIA B200': 2_250e12,
}


@dataclasses.dataclass(frozen=True)
class ParameterCount:
  """Numbers of parameters; `total` has the temperature, too."""

  total: int
  image: int  # the image tower and its projection
  text: int  # the text tower and its projection
  decoder: int = 0


@functools.cache
def abstract_variables(config: CLIPConfig) -> dict[str, Any]:
  """Returns the shapes and dtypes of what `DualEncoder(config).init` makes.

  They are 'params', and 'batch_stats' where the image tower is a ResNet.
  """
  size = config.image.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, config.text.context_length), jnp.int32)
  init = DualEncoder(config).init
  return jax.eval_shape(init, jax.random.key(0), images, tokens)


# The part of the parameters of a run that no loaded model has.
TRAINING_ONLY = 'self_distillation'


def check_variables(
  config: CLIPConfig, arrays: Mapping[str, Any], where: str
) -> None:
  """Compares the arrays of a file with what its description says of them.

  Args:
    config: the description.
    arrays: arrays, or their shapes, by path ('params/image/…').
    where: the name of the file, for the error.
  Raises:
    FailureError: a name or a shape differs; the message names the first.
  """
  differing = first_difference(arrays, flat(abstract_variables(config)))
  if differing is not None:
    path, old, new = differing
    raise FailureError(
      f'{where}: its arrays are not those of its description: {path} is {old}, '
      f'and should be {new}.'
    )


def count_parameters(config: CLIPConfig) -> ParameterCount:
  """Counts the parameters that `DualEncoder(config)` would be given.

  The running statistics of a ResNet are not parameters.
  """
  image, text = config.image, config.text
  if isinstance(image, ResNetConfig):
    image_count = _resnet_parameters(image)
  else:
    image_count = _vision_parameters(image)
  image_count += _projection_parameters(
    image.projection, image.pooled_width, config.embed_dim
  )
  text_count = (
    (text.vocab_size + text.context_length) * text.width
    + text.depth * _block_parameters(text)
    + 2 * text.width  # the last LayerNorm
    + _projection_parameters(text.projection, text.width, config.embed_dim)
  )
  image_count += _adapter_parameters(image, config.lora_of('image'))
  text_count += _adapter_parameters(text, config.lora_of('text'))
  decoder_count = _decoder_parameters(config)
  temperature = 1 if config.initial_logit_bias is None else 2
  return ParameterCount(
    total=image_count + text_count + decoder_count + temperature,
    image=image_count,
    text=text_count,
    decoder=decoder_count,
  )


def _vision_parameters(tower: VisionTransformerConfig) -> int:
  """Returns the parameters of a ViT, without its projection."""
  width, tokens = tower.width, tower.patches + tower.class_token
  total = 3 * tower.patch_size**2 * width + tower.patch_bias * width
  total += tower.class_token * width + tokens * width
  total += (2 * tower.pre_norm + 2) * width  # LayerNorms
  total += tower.depth * _block_parameters(tower)
  if tower.pooling == 'attention':  # a block with a probe and one LayerNorm
    total += _block_parameters(tower) + width - 2 * width
  return total


def _resnet_parameters(tower: ResNetConfig) -> int:
  """Returns the parameters of a ResNet without its pooling's last product.

  Each convolution is followed by a scale and a bias a channel.
  """
  half, width, pooled = tower.width // 2, tower.width, tower.pooled_width
  total = 9 * (3 * half + half * half + half * width) + 2 * (2 * half + width)
  inputs = width
  for stage, blocks in enumerate(tower.layers):
    inner = width * 2**stage
    outputs = 4 * inner
    total += inputs * outputs + 2 * outputs  # the shortcut's
    for _ in range(blocks):
      total += inner * (inputs + 9 * inner + outputs)
      total += 2 * (2 * inner + outputs)
      inputs = outputs
  positions = (tower.patches + 1) * pooled
  return total + positions + 3 * (pooled * pooled + pooled)


def _decoder_parameters(config: CLIPConfig) -> int:
  decoder, text, context = config.decoder, config.text, config.image
  if decoder is None:
    return 0
  if decoder.reads == 'pooled_image':
    return (context.pooled_width + 1) * text.vocab_size
  width = decoder.width
  total = width * text.vocab_size + 3 * width  # logits, start, last LayerNorm
  if decoder.reads != 'text_tower':
    total += (text.vocab_size + text.context_length) * width
  if decoder.reads == 'image_prefix':
    total += (context.pooled_width + 1 + width + 1) * width  # the projector
    return total + decoder.depth * _block_parameters(decoder)
  # Attention to the image: of two products with biases each side, and a
  # LayerNorm.
  cross = 2 * (width + 1) * width + 2 * (context.pooled_width + 1) * width
  return total + decoder.depth * (
    _block_parameters(decoder) + cross + 2 * width
  )


def _block_parameters(tower: TransformerConfig) -> int:
  """Returns those of attention, the MLP and two LayerNorms, with biases."""
  width, hidden = tower.width, _hidden(tower)
  attention = 4 * (width * width + width)
  mlp = width * hidden + hidden + hidden * width + width
  return attention + mlp + 4 * width


def _adapter_parameters(tower: Any, lora: LoRAConfig | None) -> int:
  """Returns the parameters of a tower's low-rank adapters.

  Each of the four kernels of a block has two factors, [D, R] and [R, D].
  """
  return 0 if lora is None else tower.depth * 8 * tower.width * lora.rank


def _projection_parameters(kind: str, width: int, embed_dim: int) -> int:
  if kind == 'none':
    return 0
  hidden = width * width + width if kind == 'mlp' else 0
  bias = 0 if kind == 'linear' else embed_dim
  return hidden + width * embed_dim + bias


def training_flops(
  config: CLIPConfig,
  patch_dropout: float = 0.0,
  sequence_lengths: Sequence[int] = (),
  without_gradient: Mapping[str, float] = MappingProxyType({}),
) -> int:
  """Returns the FLOPs of a pair in training: three times the forward pass.

  That is how PaLM counts (arXiv 2204.02311, appendix B). The loss and what
  remat computes again do not count, nor do the tokens that the last block
  leaves out where one token is pooled and no decoder reads the others, nor a
  text tower that is not run, as beside a decoder that is alone trained.

  Args:
    patch_dropout: the fraction of patches that a ViT does not see.
    sequence_lengths: patches of images of native aspect, padding included, of
      which each is as likely; by default those of a square.
    without_gradient: the share of the blocks of 'image' or 'text' that are
      below all that is trained, and have a forward pass only.
  """
  if sequence_lengths:
    totals = [
      _training_flops(config, patch_dropout, n, without_gradient)
      for n in sequence_lengths
    ]
    return round(sum(totals) / len(totals))
  return _training_flops(config, patch_dropout, None, without_gradient)


def _training_flops(
  config: CLIPConfig,
  patch_dropout: float,
  patches: int | None,
  without_gradient: Mapping[str, float],
) -> int:
  decoder = config.decoder
  reads = None if decoder is None else decoder.reads
  image = image_flops(config, patch_dropout, patches)
  if decoder is not None and decoder.only and decoder.image_layer is not None:
    image = _flops_up_to(config, decoder.image_layer, patch_dropout)
  if reads in (None, 'pooled_image'):
    image -= _skipped_image_flops(config, patch_dropout, patches)
  forward = {
    'image': image,
    'text': 0,
    'decoder': decoder_flops(config, patch_dropout),
  }
  if reads == 'text_tower':
    forward['text'] = text_flops(config)
  elif decoder is None or not decoder.only:
    forward['text'] = encoding_flops(config)[1]
  return round(
    sum(
      flops * (3 - 2 * without_gradient.get(part, 0))
      for part, flops in forward.items()
    )
  )


def image_flops(
  config: CLIPConfig, patch_dropout: float = 0.0, patches: int | None = None
) -> int:
  """Returns the FLOPs of an image through its tower and projection, forward.

  Args:
    patch_dropout: the fraction of patches that a ViT does not see.
    patches: of the image; by default those of a square.
  """
  tower = config.image
  if isinstance(tower, ResNetConfig):
    return _resnet_flops(tower) + 2 * tower.pooled_width * config.embed_dim
  tokens = tower.kept_patches(patch_dropout, patches) + tower.class_token
  total = _blocks_flops(tower, tokens, patches)
  if tower.pooling == 'attention':
    total += _query_flops(tower.width, tokens)
    total += 2 * tower.width * (tower.width + 2 * _hidden(tower))
  return total + _projection_flops(tower, config.embed_dim)


def _blocks_flops(
  tower: VisionTransformerConfig, tokens: int, patches: int | None = None
) -> int:
  """Returns the FLOPs of the patch embedding and of all blocks."""
  pixels = (patches or tower.patches) * 3 * tower.patch_size**2
  return 2 * pixels * tower.width + _stack_flops(tower, tokens)


def _flops_up_to(config: CLIPConfig, layer: int, patch_dropout: float) -> int:
  """Returns the FLOPs of an image up to a block of a ViT, and with it."""
  tower: Any = config.image
  tokens = tower.kept_patches(patch_dropout) + tower.class_token
  below = dataclasses.replace(tower, depth=layer % tower.depth + 1)
  return _blocks_flops(below, tokens)


def text_flops(config: CLIPConfig) -> int:
  """Returns the FLOPs of a text at full context, with its projection."""
  tower = config.text
  stack = _stack_flops(tower, tower.context_length)
  return stack + _projection_flops(tower, config.embed_dim)


def encoding_flops(config: CLIPConfig) -> tuple[int, int]:
  """Returns the FLOPs of encoding an image, and a text at full context.

  The tokens that the last block skips do not count.
  """
  text = config.text
  return (
    image_flops(config) - _skipped_image_flops(config, 0.0, None),
    text_flops(config) - _skipped_flops(text, text.context_length),
  )


def decoder_flops(config: CLIPConfig, patch_dropout: float = 0.0) -> int:
  """Returns the FLOPs of the decoder for a pair at full context, forward."""
  decoder, image, text = config.decoder, config.image, config.text
  if decoder is None:
    return 0
  if decoder.reads == 'pooled_image':
    return 2 * image.pooled_width * text.vocab_size
  seen = image.patches
  if not isinstance(image, ResNetConfig):
    seen = image.kept_patches(patch_dropout)
    seen += image.class_token and decoder.image_layer is None
  width, tokens = decoder.width, text.context_length
  logits = 2 * tokens * width * text.vocab_size
  if decoder.reads == 'image_prefix':
    projector = 2 * seen * (image.pooled_width + width) * width
    return projector + _stack_flops(decoder, seen + tokens) + logits
  cross = 2 * tokens * width**2 + 2 * seen * image.pooled_width * width
  cross += 2 * tokens * seen * width  # logits and mixing
  return _stack_flops(decoder, tokens) + 2 * decoder.depth * cross + logits


def _projection_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, embed_dim: int
) -> int:
  if tower.projection == 'none':
    return 0
  hidden = 2 * tower.width**2 if tower.projection == 'mlp' else 0
  return hidden + 2 * tower.width * embed_dim


def _stack_flops(tower: TransformerConfig, tokens: int) -> int:
  """Returns the FLOPs of all blocks for a number of tokens."""
  keys_and_values = 2 * 2 * tower.width**2
  return (
    tower.depth * tokens * (keys_and_values + _query_token_flops(tower, tokens))
  )


def _query_token_flops(tower: TransformerConfig, tokens: int) -> int:
  """Returns the FLOPs of a token in a block besides its key and its value.

  They are the query's and the output's product, attention's logits and mixing,
  and the MLP.
  """
  products = 2 * tower.width**2 + 2 * tower.width * _hidden(tower)
  return 2 * (products + 2 * tokens * tower.width)


def _skipped_flops(
  tower: VisionTransformerConfig | TextTransformerConfig, tokens: int
) -> int:
  """Returns the FLOPs of the tokens that `Transformer`'s last block skips.

  It computes one token where only that is pooled. The published counts have the
  FLOPs of all tokens.
  """
  return (tokens - 1) * _query_token_flops(tower, tokens)


def _skipped_image_flops(
  config: CLIPConfig, patch_dropout: float, patches: int | None
) -> int:
  tower = config.image
  if isinstance(tower, ResNetConfig) or tower.pooling != 'class_token':
    return 0
  return _skipped_flops(tower, tower.kept_patches(patch_dropout, patches) + 1)


def _query_flops(width: int, tokens: int) -> int:
  """Returns the FLOPs of one query that reads `tokens` tokens."""
  products = width**2 * (1 + 2 * tokens)  # of the query, the keys, the values
  return 2 * (products + 2 * tokens * width)


def _resnet_flops(tower: ResNetConfig) -> int:
  """Returns the FLOPs up to the attention pooling, without the projection."""
  width, side = tower.width, tower.image_size // 2
  half = width // 2
  stem = side**2 * 9 * (3 * half + half * half + half * width)
  total, inputs, side = stem, width, side // 2
  for stage, blocks in enumerate(tower.layers):
    inner = width * 2**stage
    outputs = 4 * inner
    before, side = side, side // 2 if stage else side
    for block in range(blocks):
      if block:
        inputs, before = outputs, side
      # The 3 x 3 convolution still sees the map before its average pool.
      total += before**2 * inner * (inputs + 9 * inner)
      total += side**2 * inner * outputs
      if block == 0:
        total += side**2 * inputs * outputs  # the shortcut's
    inputs = outputs
  return 2 * total + _query_flops(tower.pooled_width, tower.patches + 1)


def _hidden(tower: TransformerConfig) -> int:
  return int(tower.width * tower.mlp_ratio)


def model_flops_utilization(
  config: CLIPConfig,
  examples_per_second: float,
  device_kind: str,
  devices: int,
  patch_dropout: float = 0.0,
  sequence_lengths: Sequence[int] = (),
  without_gradient: Mapping[str, float] = MappingProxyType({}),
) -> float | None:
  """Returns the model FLOPs utilization: its arithmetic over the peak.

  Args:
    devices: the number of devices that the work is split over.
    patch_dropout, sequence_lengths, without_gradient: as in `training_flops`.
  Returns:
    A fraction, or None where the peak of this kind of device is not known.
  """
  peak = PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  pair = training_flops(
    config, patch_dropout, sequence_lengths, without_gradient
  )
  return pair * examples_per_second / (peak * devices)
