"""Goldens of open_clip's ViT CLIP: its weights in our tree, and its outputs.

Made by calling open_clip on tiny models with random weights; the mapping of
its weights is written for the tests alone.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from clip_jax.models.config import (
  CLIPConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)

GOLDENS = Path(__file__).parent.parent / 'goldens'

# The absolute tolerances that come with the goldens.
TOLERANCES = {
  'open_clip_vit': {
    'image_features': 2e-5,
    'image_features_normalized': 1e-5,
    'text_features': 3e-5,
    'text_features_normalized': 1e-5,
    'logits_per_image': 2e-5,
    'logit_scale_exp': 1e-5,
    'image_patch_tokens': 9e-5,
    'image_block_0': 1e-4,
    'image_block_1': 1e-4,
    'text_block_0': 3e-5,
    'text_block_1': 3e-5,
  },
  'open_clip_vit_gelu': {
    'image_features': 2e-5,
    'image_features_normalized': 1e-5,
    'text_features': 3e-5,
    'text_features_normalized': 1e-5,
    'logits_per_image': 3e-5,
    'logit_scale_exp': 1e-5,
    'image_patch_tokens': 5e-5,
    'image_block_0': 6e-5,
    'image_block_1': 6e-5,
    'image_block_2': 6e-5,
    'text_block_0': 2e-5,
    'text_block_1': 2e-5,
  },
}


@dataclasses.dataclass(frozen=True)
class Golden:
  """One golden model; tensors as its README names them."""

  name: str
  config: CLIPConfig
  params: Any
  images: jax.Array  # float32 [B, S, S, 3], normalised
  tokens: jax.Array  # int32 [B, T]
  outputs: dict[str, np.ndarray]

  def check(self, name: str, actual: Any) -> None:
    """Compares with the golden of that name, at its own tolerance."""
    np.testing.assert_allclose(
      np.asarray(actual),
      self.outputs[name],
      rtol=0,
      atol=TOLERANCES[self.name][name],
      err_msg=name,
    )


def load_golden(name: str) -> Golden:
  """Reads the golden model of a folder."""
  folder = GOLDENS / name
  config = open_clip_config(json.loads((folder / 'config.json').read_text()))
  inputs = load_file(folder / 'inputs.safetensors')
  return Golden(
    name=name,
    config=config,
    params=open_clip_params(load_file(folder / 'model.safetensors'), config),
    images=jnp.asarray(inputs['images'].transpose(0, 2, 3, 1)),
    tokens=jnp.asarray(inputs['tokens'].astype(np.int32)),
    outputs=load_file(folder / 'outputs.safetensors'),
  )


def open_clip_config(fields: dict[str, Any]) -> CLIPConfig:
  """open_clip's model config as ours."""
  image, text = fields['vision_cfg'], fields['text_cfg']
  activation = 'quick_gelu' if fields.get('quick_gelu') else 'gelu'
  return CLIPConfig(
    embed_dim=fields['embed_dim'],
    image=VisionTransformerConfig(
      image_size=image['image_size'],
      patch_size=image['patch_size'],
      width=image['width'],
      depth=image['layers'],
      heads=image['width'] // image.get('head_width', 64),
      mlp_ratio=image.get('mlp_ratio', 4.0),
      activation=activation,
    ),
    text=TextTransformerConfig(
      vocab_size=text['vocab_size'],
      context_length=text['context_length'],
      end_token=text['vocab_size'] - 1,
      width=text['width'],
      depth=text['layers'],
      heads=text['heads'],
      activation=activation,
    ),
  )


def open_clip_params(theirs: dict[str, np.ndarray], config: CLIPConfig) -> Any:
  """open_clip's state dict as our parameter tree; every key is used."""
  theirs = dict(theirs)

  def norm(prefix):
    return {
      'scale': theirs.pop(f'{prefix}.weight'),
      'bias': theirs.pop(f'{prefix}.bias'),
    }

  def dense(prefix):
    return {
      'kernel': theirs.pop(f'{prefix}.weight').T,
      'bias': theirs.pop(f'{prefix}.bias'),
    }

  def block(prefix, width, heads):
    head_width = width // heads
    kernel = theirs.pop(f'{prefix}.attn.in_proj_weight').T
    bias = theirs.pop(f'{prefix}.attn.in_proj_bias')
    out = dense(f'{prefix}.attn.out_proj')
    return {
      'ln_1': norm(f'{prefix}.ln_1'),
      'attention': {
        'qkv': {
          'kernel': kernel.reshape(width, 3, heads, head_width),
          'bias': bias.reshape(3, heads, head_width),
        },
        'out': {
          'kernel': out['kernel'].reshape(heads, head_width, width),
          'bias': out['bias'],
        },
      },
      'ln_2': norm(f'{prefix}.ln_2'),
      'mlp': {
        'up': dense(f'{prefix}.mlp.c_fc'),
        'down': dense(f'{prefix}.mlp.c_proj'),
      },
    }

  def blocks(prefix, tower):
    each = [
      block(f'{prefix}.resblocks.{i}', tower.width, tower.heads)
      for i in range(tower.depth)
    ]
    return {'blocks': stacked(each)}

  params = {
    'image': {
      'class_embedding': theirs.pop('visual.class_embedding'),
      'position_embedding': theirs.pop('visual.positional_embedding'),
      'patch_embedding': {
        'kernel': theirs.pop('visual.conv1.weight').transpose(2, 3, 1, 0)
      },
      'ln_pre': norm('visual.ln_pre'),
      'ln_post': norm('visual.ln_post'),
      'transformer': blocks('visual.transformer', config.image),
    },
    'image_projection': {'kernel': theirs.pop('visual.proj')},
    'text': {
      'token_embedding': {'embedding': theirs.pop('token_embedding.weight')},
      'position_embedding': theirs.pop('positional_embedding'),
      'transformer': blocks('transformer', config.text),
      'ln_final': norm('ln_final'),
    },
    'text_projection': {'kernel': theirs.pop('text_projection')},
    'logit_scale': theirs.pop('logit_scale'),
  }
  assert not theirs, f'keys left over: {sorted(theirs)}'
  return params


def stacked(trees: list[Any]) -> Any:
  """Trees of one shape as a tree of arrays with a leading layer axis."""
  if isinstance(trees[0], dict):
    return {key: stacked([tree[key] for tree in trees]) for key in trees[0]}
  return np.stack(trees)
