"""The form for CPUs holds the same values, and computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.inference import unrolled
from clip_jax.models.dual_encoder import DualEncoder
from tests.tiny import TINY

IMAGES = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(3, 8)


@pytest.fixture(scope='module')
def params():
  init = DualEncoder(TINY).init
  return jax.jit(init)(jax.random.key(0), IMAGES, TOKENS)['params']


def test_unrolled_towers_compute_what_scanned_ones_do(params):
  module, clone = DualEncoder(TINY), DualEncoder(TINY, unroll=True)
  form = unrolled.unroll(params)
  for method, args in (
    ('encode_image', (IMAGES,)),
    ('encode_text', (TOKENS,)),
    ('image_tokens', (IMAGES, 0)),
  ):
    expected = module.apply({'params': params}, *args, method=method)
    got = clone.apply({'params': unrolled.restore(form)}, *args, method=method)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_only_the_layout_differs(params):
  form = unrolled.restore(unrolled.unroll(params))
  for tower in ('image', 'text'):
    stack = params[tower]['transformer']['blocks']
    for i in range(2):
      block = form[tower]['transformer'][f'block_{i}']
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), stack, block
      )
  assert form['logit_scale'] == params['logit_scale']


def test_sharded_parameters_stay_as_they_are(params):
  assert unrolled.pays(params)
  mesh = jax.make_mesh((2,), ('x',), devices=jax.devices()[:2])
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  assert not unrolled.pays({'a': jax.device_put(jnp.zeros(4), spec)})
