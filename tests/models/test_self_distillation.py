"""Heads beside a dual encoder, which stays what it is without them.

That the losses on them are a formula is in
tests/objectives/test_self_distillation.py.
"""

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.self_distillation import HeadConfig, SelfDistilledEncoder
from clip_jax.trees import flat
from tests.tiny import TINY_SIGLIP

HEAD = HeadConfig(hidden=24, features=6, prototypes=10)
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
TOKENS = np.full((3, 8), 7, np.int32)


def params_of(module):
  inputs = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(TOKENS)
  return jax.jit(module.init)(jax.random.key(0), *inputs)['params']


def test_the_towers_of_an_encoder_with_heads_are_those_without():
  plain = params_of(DualEncoder(TINY_SIGLIP))
  module = SelfDistilledEncoder(TINY_SIGLIP, head=HEAD)
  params = params_of(module)
  assert set(params) - set(plain) == {'self_distillation'}
  for name, leaf in flat(plain).items():
    np.testing.assert_array_equal(leaf, flat(params)[name])


def test_heads_make_features_of_unit_length():
  module = SelfDistilledEncoder(TINY_SIGLIP, head=HEAD)
  params = params_of(module)
  at = jnp.asarray([[0, 2], [1, 3], [0, 1]])
  made = module.apply(
    {'params': params},
    jnp.asarray(IMAGES, jnp.float32),
    module.heads,
    at,
    method='view_features',
  )
  assert {k: v.shape for k, v in made.items()} == {
    'image_head': (3, 6),
    'patch_head': (3, 2, 6),
  }
  for features in made.values():
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-5)


def test_a_first_teacher_is_the_student():
  module = SelfDistilledEncoder(TINY_SIGLIP, head=HEAD, heads=('image_head',))
  params = params_of(module)
  assert set(params['self_distillation']) == {'image_head'}
  teacher = module.first_teacher(params)
  for name, leaf in flat(teacher['params']).items():
    np.testing.assert_array_equal(leaf, flat(params)[name])
  assert list(teacher['centre']) == ['image_head']
  np.testing.assert_array_equal(teacher['centre']['image_head'], np.zeros(10))
