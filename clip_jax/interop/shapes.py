"""The config of a weight file that came without one, told from its shapes.

Heads and activations leave no trace in the arrays. Where the shapes are those
of a published model, its row of the preset table has them; elsewhere heads are
64 wide and the activation is QuickGELU, as in every model of the paper.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import FailureError
from clip_jax.interop.tensor_file import TensorInfo
from clip_jax.models.config import (
  CLIPConfig,
  ImageConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
  mlp_ratio,
)
from clip_jax.models.presets import (
  PRESETS,
  SIGLIP_IMAGE,
  SIGLIP_TEMPERATURE,
  SIGLIP_TEXT,
)

Infos = Mapping[str, TensorInfo]
_HEAD_WIDTH = 64


def of_openai(infos: Infos, where: str) -> CLIPConfig:
  """Returns the config of a state dict with OpenAI's keys.

  Args:
    infos: of its tensors.
    where: the file, for the errors.
  Raises:
    FailureError: keys are missing that would tell.
  """
  try:
    image = (
      _resnet(infos) if 'visual.layer1.0.conv1.weight' in infos else _vit(infos)
    )
    vocab_size, width = infos['token_embedding.weight'].shape
    context_length, _ = infos['positional_embedding'].shape
    _, embed_dim = infos['text_projection'].shape
    block = 'transformer.resblocks.{}.mlp.c_fc.weight'
    config = CLIPConfig(
      embed_dim=embed_dim,
      image=image,
      text=TextTransformerConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        end_token=vocab_size - 1,
        width=width,
        depth=_count(infos, block),
        heads=max(1, width // _HEAD_WIDTH),
        mlp_ratio=mlp_ratio(infos[block.format(0)].shape[0], width),
        pooling='highest',
      ),
    )
  except (LookupError, ValueError, ArithmeticError) as error:
    raise FailureError(
      f'{where} has not the keys of a CLIP model that its shapes could tell: '
      f'{error}.'
    ) from error
  return _as_published(config)


def of_big_vision(infos: Infos, where: str) -> CLIPConfig:
  """Returns the config of a SigLIP checkpoint of big_vision's.

  Raises:
    FailureError: keys are missing that would tell.
  """
  image, text = 'params/img/', 'params/txt/'
  try:
    patch_size, _, _, width = infos[f'{image}embedding/kernel'].shape
    patches = infos[f'{image}pos_embedding'].shape[1]
    vocab_size, text_width = infos[f'{text}Embed_0/embedding'].shape
    pooled = dict(SIGLIP_TEXT)
    if f'{text}head/kernel' not in infos:
      pooled['projection'] = 'none'
    tower: dict[str, Any] = dict(activation='gelu_tanh', norm_eps=1e-6)
    config = CLIPConfig(
      embed_dim=width,
      image=VisionTransformerConfig(
        image_size=_square(patches) * patch_size,
        patch_size=patch_size,
        **_stack(infos, f'{image}Transformer/', width),
        **tower,
        **SIGLIP_IMAGE,
      ),
      text=TextTransformerConfig(
        vocab_size=vocab_size,
        context_length=infos[f'{text}pos_embedding'].shape[1],
        **_stack(infos, f'{text}Encoder_0/', text_width),
        **tower,
        **pooled,
      ),
      **SIGLIP_TEMPERATURE,
    )
  except (LookupError, ValueError, ArithmeticError) as error:
    raise FailureError(
      f"{where} has not the keys of big_vision's SigLIP: {error}."
    ) from error
  return _as_published(config)


def _vit(infos: Infos) -> VisionTransformerConfig:
  width, _, patch_size, _ = infos['visual.conv1.weight'].shape
  tokens, _ = infos['visual.positional_embedding'].shape
  block = 'visual.transformer.resblocks.{}.mlp.c_fc.weight'
  return VisionTransformerConfig(
    image_size=_square(tokens - 1) * patch_size,
    patch_size=patch_size,
    width=width,
    depth=_count(infos, block),
    heads=max(1, width // _HEAD_WIDTH),
    mlp_ratio=mlp_ratio(infos[block.format(0)].shape[0], width),
    pre_norm='visual.ln_pre.weight' in infos,
  )


def _resnet(infos: Infos) -> ResNetConfig:
  tokens, channels = infos['visual.attnpool.positional_embedding'].shape
  return ResNetConfig(
    image_size=_square(tokens - 1) * 32,
    layers=tuple(
      _count(infos, f'visual.layer{stage}.{{}}.conv1.weight')
      for stage in (1, 2, 3, 4)
    ),
    width=channels // 32,
    heads=max(1, channels // _HEAD_WIDTH),
  )


def _stack(infos: Infos, prefix: str, width: int) -> dict[str, Any]:
  """Returns width, depth, heads and MLP ratio of an encoder of big_vision's."""
  stacked = f'{prefix}encoderblock/'
  if f'{stacked}LayerNorm_0/scale' in infos:
    block, depth = stacked, infos[f'{stacked}LayerNorm_0/scale'].shape[0]
  else:
    block = f'{prefix}encoderblock_0/'
    depth = _count(infos, f'{prefix}encoderblock_{{}}/LayerNorm_0/scale')
  attention = f'{block}MultiHeadDotProductAttention_0/'
  hidden = infos[f'{block}MlpBlock_0/Dense_0/kernel'].shape[-1]
  return dict(
    width=width,
    depth=depth,
    heads=infos[f'{attention}query/kernel'].shape[-2],
    mlp_ratio=mlp_ratio(hidden, width),
  )


def _count(infos: Infos, pattern: str) -> int:
  """Returns how many layers there are, from 0 without a gap."""
  before, after = map(re.escape, pattern.split('{}'))
  numbers = {
    int(match[1])
    for match in (re.fullmatch(f'{before}(\\d+){after}', k) for k in infos)
    if match
  }
  if numbers != set(range(len(numbers))) or not numbers:
    raise KeyError(pattern.format(len(numbers)))
  return len(numbers)


def _square(positions: int) -> int:
  side = math.isqrt(max(positions, 0))
  if side == 0 or side * side != positions:
    raise ValueError(f'{positions} positions are no square')
  return side


def _as_published(config: CLIPConfig) -> CLIPConfig:
  """Returns the config with what the published model of these shapes has.

  That is heads, an activation, and an image's border that no whole patch covers
  (384 pixels in patches of 14). Of OpenAI's and open_clip's rows, OpenAI's come
  first. One for images of another size will do: heads do not depend on it.
  """
  fitting = _published(config)
  grid = config.image.grid
  same_size = [row for row in fitting if row.image.grid == grid]
  if not fitting:
    return config
  image, text = (same_size or fitting)[0].image, fitting[0].text
  if not same_size:
    image = dataclasses.replace(image, image_size=config.image.image_size)
  return dataclasses.replace(
    config,
    image=image,
    text=dataclasses.replace(
      config.text, heads=text.heads, activation=text.activation
    ),
  )


def is_published(config: CLIPConfig) -> bool:
  """Returns whether a published model has these shapes, whatever its loss.

  The numbers of heads, which no shape shows, are known of such a model.
  """
  return bool(
    _published(dataclasses.replace(config, initial_logit_bias=None))
    or _published(config)
  )


def _published(config: CLIPConfig) -> list[CLIPConfig]:
  rows = [preset.config for preset in PRESETS.values()]
  return [row for row in rows if _arrays(row) == _arrays(config)]


def _arrays(config: CLIPConfig) -> tuple[Any, ...]:
  """Returns what the shapes of arrays show of a config, but for the grid."""
  image: ImageConfig = config.image
  fields = {
    field.name: getattr(image, field.name)
    for field in dataclasses.fields(image)
  }
  hidden = int(fields.get('width') * fields.pop('mlp_ratio', 1))
  for name in ('heads', 'activation', 'image_size', 'norm_eps'):
    fields.pop(name, None)
  text = config.text
  return (
    config.embed_dim,
    config.initial_logit_bias is None,
    type(image),
    hidden,
    fields,
    (text.width, text.depth, int(text.width * text.mlp_ratio)),
    (text.vocab_size, text.context_length, text.projection),
  )
