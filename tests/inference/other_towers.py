"""Tiny models of every family of towers, with noise for parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.inference.model import Model
from clip_jax.models.config import ResNetConfig
from clip_jax.models.dual_encoder import DualEncoder
from tests.tiny_run import tiny_description

_RESNET = ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=4, heads=4)

# By name: fields of the whole, the image tower (or the tower), the text tower.
TOWERS = {
  'average': ({}, {'activation': 'gelu', 'pooling': 'average'},
              {'activation': 'gelu', 'pooling': 'highest'}),
  'siglip': ({'embed_dim': 32, 'initial_logit_bias': -10.0},
             {'activation': 'gelu_tanh', 'pooling': 'attention',
              'class_token': False, 'pre_norm': False, 'patch_bias': True,
              'projection': 'none', 'norm_eps': 1e-6},
             {'activation': 'gelu_tanh', 'causal': False, 'pooling': 'last',
              'projection': 'affine', 'norm_eps': 1e-6}),
  'resnet': ({}, _RESNET, {}),
}  # fmt: skip


def random_model(name: str) -> Model:
  """One of `TOWERS`, the rest being as in `tiny_description`."""
  description = tiny_description()
  whole, image, text = TOWERS[name]
  tiny = description.model
  if isinstance(image, dict):
    image = dataclasses.replace(tiny.image, **image)
  text = dataclasses.replace(tiny.text, **text)
  config = dataclasses.replace(tiny, image=image, text=text, **whole)
  size = image.image_size
  variables = jax.jit(DualEncoder(config).init)(
    jax.random.key(0),
    jnp.zeros((1, size, size, 3)),
    jnp.zeros((1, text.context_length), jnp.int32),
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(  # upwards, since variances are among them
    lambda x: (x + 0.1 * rng.random(x.shape)).astype(x.dtype), variables
  )
  preprocessing = dataclasses.replace(
    description.preprocessing, image_size=size
  )
  return Model(
    dataclasses.replace(description, model=config, preprocessing=preprocessing),
    variables,
  )
