"""The form for CPUs holds the same values, and computes the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.inference import cpu_layout
from clip_jax.models.dual_encoder import DualEncoder
from tests.tiny import TINY

IMAGES = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(3, 8)


@functools.cache
def initial():
  init = DualEncoder(TINY).init
  return jax.jit(init)(jax.random.key(0), IMAGES, TOKENS)


def variables():
  """Nested dictionaries of one's own, which `unroll` may use up."""
  return jax.tree.map(lambda leaf: leaf, initial())


def test_unrolled_towers_compute_what_scanned_ones_do():
  module = DualEncoder(TINY)
  form = cpu_layout.unroll(variables())
  for method, args in (
    ('encode_image', (IMAGES,)),
    ('encode_text', (TOKENS,)),
    ('image_tokens', (IMAGES, (0, 1))),
  ):
    expected = module.apply(variables(), *args, method=method)
    got = module.apply(form, *args, method=method)
    for one, other in zip(got, expected, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_only_the_layout_differs():
  params = variables()['params']
  form = cpu_layout.unroll(variables())['params']
  for tower in ('image', 'text'):
    stack = params[tower]['transformer']['blocks']
    for i in range(2):
      block = form[tower]['transformer'][f'block_{i}']
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), stack, block
      )
  assert form['logit_scale'] == params['logit_scale']


def test_stacked_again_they_are_what_they_were():
  again = cpu_layout.stack(cpu_layout.unroll(variables()))
  jax.tree.map(np.testing.assert_array_equal, again, variables())


def test_stacks_are_let_go_of():
  tree = variables()
  blocks = tree['params']['text']['transformer']['blocks']
  cpu_layout.unroll(tree)
  assert tree == {}
  assert jax.tree.leaves(blocks) == []


def test_sharded_variables_stay_as_they_are():
  assert cpu_layout.is_on_cpus(variables())
  mesh = jax.make_mesh((2,), ('x',), devices=jax.devices()[:2])
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  assert not cpu_layout.is_on_cpus({'a': jax.device_put(jnp.zeros(4), spec)})
