"""The keys of transformers' `CLIPModel`, `SiglipModel` and `Siglip2Model`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.interop.layouts import (
  ALL,
  CONV,
  HEADS,
  HEADS_MATRIX,
  MATRIX,
  PATCH_MATRIX,
  Constant,
  Row,
  Table,
  within,
)
from clip_jax.interop.openai import linear, norm
from clip_jax.models.config import CLIPConfig, VisionTransformerConfig

_PATCHES = 'vision_model.embeddings.patch_embedding.weight'


def is_native(infos: Mapping[str, Any]) -> bool:
  """Returns whether keys are of `Siglip2Model`, which reads patches (NaFlex).

  It multiplies flat patches by a matrix, where `SiglipModel` convolves.
  """
  return _PATCHES in infos and len(infos[_PATCHES].shape) == 2


def table(config: CLIPConfig, native: bool = False) -> Table:
  """Returns the keys of the class that `hugging_face.write_config` names."""
  if config.initial_logit_bias is None:
    return _clip_table(config)
  return _siglip_table(config, native)


def _clip_table(config: CLIPConfig) -> Table:
  """Returns the keys of a `CLIPModel`."""
  vision = 'vision_model.'
  embeddings = f'{vision}embeddings.'
  rows = [
    Row('params/logit_scale', 'logit_scale'),
    Row('params/image/class_embedding', f'{embeddings}class_embedding'),
    Row(
      'params/image/patch_embedding/kernel',
      f'{embeddings}patch_embedding.weight',
      CONV,
    ),
    Row(
      'params/image/position_embedding',
      f'{embeddings}position_embedding.weight',
    ),
    # The misspelling is transformers'.
    *norm('params/image/ln_pre', f'{vision}pre_layrnorm'),
    *_layers('image', f'{vision}encoder.layers.{{i}}.'),
    *norm('params/image/ln_post', f'{vision}post_layernorm'),
    *_text(),
  ]
  for ours, theirs, kind in (
    ('image_projection', 'visual_projection', config.image.projection),
    ('text_projection', 'text_projection', config.text.projection),
  ):
    if kind == 'linear':  # a tower that came alone may have none
      rows.append(Row(f'params/{ours}/kernel', f'{theirs}.weight', MATRIX))
  return Table("transformers' CLIPModel", rows, _positions(config))


def _siglip_table(config: CLIPConfig, native: bool) -> Table:
  """Returns the keys of a `SiglipModel`, of SigLIP or SigLIP 2.

  The latter with a fixed resolution, or `native`: a `Siglip2Model`.
  """
  vision = 'vision_model.'
  pool, head = 'params/image/attention_pool', f'{vision}head.'
  embeddings = f'{vision}embeddings.'
  rows = [
    Row('params/logit_scale', 'logit_scale', within(1)),
    Row('params/logit_bias', 'logit_bias', within(1)),
    *linear(
      'params/image/patch_embedding',
      f'{embeddings}patch_embedding',
      PATCH_MATRIX if native else CONV,
    ),
    Row(
      'params/image/position_embedding',
      f'{embeddings}position_embedding.weight',
    ),
    *_layers('image', f'{vision}encoder.layers.{{i}}.'),
    *norm('params/image/ln_post', f'{vision}post_layernorm'),
    Row(f'{pool}/probe', f'{head}probe', within(2)),
    Row(f'{pool}/qkv/kernel', f'{head}attention.in_proj_weight', MATRIX),
    Row(f'{pool}/qkv/bias', f'{head}attention.in_proj_bias', HEADS),
    *linear(f'{pool}/out', f'{head}attention.out_proj', HEADS_MATRIX),
    *norm(f'{pool}/ln', f'{head}layernorm'),
    *linear(f'{pool}/mlp/up', f'{head}mlp.fc1'),
    *linear(f'{pool}/mlp/down', f'{head}mlp.fc2'),
    *_text(),
    *linear('params/text_projection', 'text_model.head'),
  ]
  name = f"transformers' Siglip{'2' if native else ''}Model"
  return Table(name, rows, _positions(config))


def _text() -> list[Row]:
  embeddings = 'text_model.embeddings.'
  return [
    Row(
      'params/text/token_embedding/embedding',
      f'{embeddings}token_embedding.weight',
    ),
    Row(
      'params/text/position_embedding',
      f'{embeddings}position_embedding.weight',
    ),
    *_layers('text', 'text_model.encoder.layers.{i}.'),
    *norm('params/text/ln_final', 'text_model.final_layer_norm'),
  ]


def _layers(tower: str, theirs: str) -> list[Row]:
  ours = f'params/{tower}/transformer/blocks/'
  rows = [
    *norm(f'{ours}ln_1', f'{theirs}layer_norm1'),
    *norm(f'{ours}ln_2', f'{theirs}layer_norm2'),
    *linear(
      f'{ours}attention/out', f'{theirs}self_attn.out_proj', HEADS_MATRIX
    ),
    *linear(f'{ours}mlp/up', f'{theirs}mlp.fc1'),
    *linear(f'{ours}mlp/down', f'{theirs}mlp.fc2'),
  ]
  for j, name in enumerate('qkv'):
    qkv, key = f'{ours}attention/qkv', f'{theirs}self_attn.{name}_proj'
    rows += [
      Row(f'{qkv}/kernel', f'{key}.weight', MATRIX, (ALL, j)),
      Row(f'{qkv}/bias', f'{key}.bias', HEADS, (j,)),
    ]
  return rows


def _positions(config: CLIPConfig) -> list[Constant]:
  """Returns the buffers 0, 1, 2, … that older transformers saved."""
  image = config.image
  assert isinstance(image, VisionTransformerConfig)
  lengths = {
    'vision_model': image.patches + image.class_token,
    'text_model': config.text.context_length,
  }
  return [
    Constant(f'{tower}.embeddings.position_ids', (1, length), _counts_up)
    for tower, length in lengths.items()
  ]


def _counts_up(ids: np.ndarray) -> bool:
  return np.array_equal(ids.reshape(-1), np.arange(ids.size))
