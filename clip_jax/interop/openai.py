"""The keys of OpenAI's state dicts, and of open_clip's.

These are the same, but for the towers that open_clip takes from timm (SigLIP).

open_clip's `CustomTextCLIP` has its text tower behind 'text.', and an image
tower of timm's behind 'visual.trunk.'; all else is as OpenAI named it.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from clip_jax.interop.layouts import (
  ALL,
  CONV,
  COUNTER,
  HEADS,
  HEADS_MATRIX,
  MATRIX,
  Constant,
  Form,
  Row,
  Table,
  within,
)
from clip_jax.models.config import (
  CLIPConfig,
  ResNetConfig,
  VisionTransformerConfig,
)

_STACKED = 'params/{}/transformer/blocks/'  # of a tower; the first axis: layers


@dataclasses.dataclass(frozen=True)
class Variant:
  """The choices between keys that a config leaves open.

  Attributes:
    text_prefix: '' of OpenAI's `CLIP`, 'text.' of `CustomTextCLIP`.
    trunk: the image tower is timm's.
  """

  text_prefix: str = ''
  trunk: bool = False


def variant_of(keys: Mapping[str, object]) -> Variant:
  """Returns the variant that a state dict is of, told from its keys."""
  custom = any(key.startswith('text.') for key in keys)
  trunk = any(key.startswith('visual.trunk.') for key in keys)
  return Variant('text.' if custom else '', trunk)


def table(config: CLIPConfig, variant: Variant) -> Table:
  """Returns the keys of a model."""
  image, text = config.image, variant.text_prefix
  rows = [Row('params/logit_scale', 'logit_scale')]
  if config.initial_logit_bias is not None:
    rows.append(Row('params/logit_bias', 'logit_bias'))
  if isinstance(image, ResNetConfig):
    rows += _resnet(image)
  elif variant.trunk:
    rows += _timm(image)
  else:
    rows += _vit(image)
  rows += [
    Row(
      'params/text/token_embedding/embedding', f'{text}token_embedding.weight'
    ),
    Row('params/text/position_embedding', f'{text}positional_embedding'),
    *_blocks('text', f'{text}transformer.resblocks.{{i}}.'),
    *norm('params/text/ln_final', f'{text}ln_final'),
  ]
  if config.text.projection == 'linear':
    rows.append(Row('params/text_projection/kernel', f'{text}text_projection'))
  elif config.text.projection == 'affine':
    rows += linear('params/text_projection', f'{text}text_projection')
  constants = [*_scalars(config), *_masks(config, text)]
  return Table('the layout of OpenAI and open_clip', rows, constants)


def linear(ours: str, theirs: str, form: Form = MATRIX) -> list[Row]:
  """Returns a torch Linear with a bias."""
  return [
    Row(f'{ours}/kernel', f'{theirs}.weight', form),
    Row(f'{ours}/bias', f'{theirs}.bias'),
  ]


def norm(ours: str, theirs: str) -> list[Row]:
  """Returns the gain and bias of a torch norm."""
  return [
    Row(f'{ours}/scale', f'{theirs}.weight'),
    Row(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _vit(image: VisionTransformerConfig) -> list[Row]:
  rows = [
    Row('params/image/patch_embedding/kernel', 'visual.conv1.weight', CONV),
    Row('params/image/position_embedding', 'visual.positional_embedding'),
    *_blocks('image', 'visual.transformer.resblocks.{i}.'),
    *norm('params/image/ln_post', 'visual.ln_post'),
    Row('params/image_projection/kernel', 'visual.proj'),
  ]
  if image.class_token:
    rows.append(Row('params/image/class_embedding', 'visual.class_embedding'))
  if image.pre_norm:
    rows += norm('params/image/ln_pre', 'visual.ln_pre')
  return rows


def _blocks(tower: str, theirs: str) -> list[Row]:
  ours = _STACKED.format(tower)
  return [
    *norm(f'{ours}ln_1', f'{theirs}ln_1'),
    Row(f'{ours}attention/qkv/kernel', f'{theirs}attn.in_proj_weight', MATRIX),
    Row(f'{ours}attention/qkv/bias', f'{theirs}attn.in_proj_bias', HEADS),
    *linear(f'{ours}attention/out', f'{theirs}attn.out_proj', HEADS_MATRIX),
    *norm(f'{ours}ln_2', f'{theirs}ln_2'),
    *linear(f'{ours}mlp/up', f'{theirs}mlp.c_fc'),
    *linear(f'{ours}mlp/down', f'{theirs}mlp.c_proj'),
  ]


def _resnet(image: ResNetConfig) -> list[Row]:
  rows = []
  for i in (1, 2, 3):
    rows += _conv_and_norm('stem', 'visual.', i)
  inputs = image.width
  for stage, count in enumerate(image.layers):
    outputs = 4 * image.width * 2**stage
    for block in range(count):
      ours = f'stage{stage + 1}_{block}'
      theirs = f'visual.layer{stage + 1}.{block}.'
      for i in (1, 2, 3):
        rows += _conv_and_norm(ours, theirs, i)
      if block == 0 and (stage or inputs != outputs):
        path = f'{ours}/shortcut_conv/kernel'
        key = f'{theirs}downsample.0.weight'
        rows.append(Row(f'params/image/{path}', key, CONV))
        rows += _batch_norm(f'{ours}/shortcut_bn', f'{theirs}downsample.1')
  pool = 'visual.attnpool.'
  rows.append(
    Row('params/image/position_embedding', f'{pool}positional_embedding')
  )
  for j, name in enumerate('qkv'):
    ours = 'params/image/attention_pool'
    rows += [
      Row(f'{ours}/kernel', f'{pool}{name}_proj.weight', MATRIX, (ALL, j)),
      Row(f'{ours}/bias', f'{pool}{name}_proj.bias', HEADS, (j,)),
    ]
  return rows + linear('params/image_projection', f'{pool}c_proj')


def _conv_and_norm(ours: str, theirs: str, i: int) -> list[Row]:
  """Returns the i-th convolution of a module, and the norm behind it."""
  conv = Row(
    f'params/image/{ours}/conv{i}/kernel', f'{theirs}conv{i}.weight', CONV
  )
  return [conv, *_batch_norm(f'{ours}/bn{i}', f'{theirs}bn{i}')]


def _batch_norm(ours: str, theirs: str) -> list[Row]:
  stats = f'batch_stats/image/{ours}'
  return [
    *norm(f'params/image/{ours}', theirs),
    Row(f'{stats}/mean', f'{theirs}.running_mean'),
    Row(f'{stats}/var', f'{theirs}.running_var'),
    Row(f'{stats}/count', f'{theirs}.num_batches_tracked', COUNTER),
  ]


def _timm(image: VisionTransformerConfig) -> list[Row]:
  """Returns the rows of timm's `vit_*_siglip`, with MAP pooling."""
  ours, trunk = 'params/image', 'visual.trunk.'
  blocks, block = _STACKED.format('image'), f'{trunk}blocks.{{i}}.'
  pool, theirs = f'{ours}/attention_pool', f'{trunk}attn_pool.'
  return [
    *linear(f'{ours}/patch_embedding', f'{trunk}patch_embed.proj', CONV),
    Row(f'{ours}/position_embedding', f'{trunk}pos_embed', within(1)),
    *norm(f'{blocks}ln_1', f'{block}norm1'),
    Row(f'{blocks}attention/qkv/kernel', f'{block}attn.qkv.weight', MATRIX),
    Row(f'{blocks}attention/qkv/bias', f'{block}attn.qkv.bias', HEADS),
    *linear(f'{blocks}attention/out', f'{block}attn.proj', HEADS_MATRIX),
    *norm(f'{blocks}ln_2', f'{block}norm2'),
    *linear(f'{blocks}mlp/up', f'{block}mlp.fc1'),
    *linear(f'{blocks}mlp/down', f'{block}mlp.fc2'),
    *norm(f'{ours}/ln_post', f'{trunk}norm'),
    Row(f'{pool}/probe', f'{theirs}latent', within(2)),
    Row(f'{pool}/qkv/kernel', f'{theirs}q.weight', MATRIX, (ALL, 0)),
    Row(f'{pool}/qkv/bias', f'{theirs}q.bias', HEADS, (0,)),
    Row(f'{pool}/qkv/kernel', f'{theirs}kv.weight', MATRIX, (ALL, slice(1, 3))),
    Row(f'{pool}/qkv/bias', f'{theirs}kv.bias', HEADS, (slice(1, 3),)),
    *linear(f'{pool}/out', f'{theirs}proj', HEADS_MATRIX),
    *norm(f'{pool}/ln', f'{theirs}norm'),
    *linear(f'{pool}/mlp/up', f'{theirs}mlp.fc1'),
    *linear(f'{pool}/mlp/down', f'{theirs}mlp.fc2'),
  ]


def _scalars(config: CLIPConfig) -> list[Constant]:
  """Returns the numbers that OpenAI's state dicts hold beside the weights."""
  return [
    Constant(name, (), functools.partial(np.array_equal, value))
    for name, value in (
      ('input_resolution', config.image.image_size),
      ('context_length', config.text.context_length),
      ('vocab_size', config.text.vocab_size),
    )
  ]


def _masks(config: CLIPConfig, text: str) -> list[Constant]:
  """Returns the keys of the causal mask, which some archives hold as a buffer.

  It is there once, or once for each block.
  """
  if not config.text.causal:
    return []
  size = config.text.context_length
  blocks = range(config.text.depth)
  keys = [f'{text}transformer.resblocks.{i}.attn_mask' for i in blocks]
  return [
    Constant(key, (size, size), _is_causal)
    for key in (f'{text}attn_mask', *keys)
  ]


def _is_causal(mask: np.ndarray) -> bool:
  """Returns whether a mask hides what is later, by True or by -inf or so."""
  shape = mask.shape
  hidden = mask if mask.dtype == bool else mask.astype(np.float32) <= -1e4
  later = np.arange(shape[1])[None] > np.arange(shape[0])[:, None]
  others = np.zeros((), mask.dtype)
  return np.array_equal(hidden, later) and bool(np.all(mask[~later] == others))
