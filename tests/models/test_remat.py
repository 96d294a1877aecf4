"""Remat policies: what blocks compute again, and that it changes no number."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.models.config import LoRAConfig, VisionTransformerConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.kernels import REMAT_POLICIES, remat_policies
from clip_jax.models.layers import Transformer
from clip_jax.models.resnet import ResNet
from clip_jax.training.config import check_config
from tests.tiny import TINY, TINY_RESNET, tiny_config

WIDTH, TOKENS = 8, 5
FOUR_BLOCKS = VisionTransformerConfig(
  image_size=8, patch_size=4, width=WIDTH, depth=4, heads=2
)
# What a Transformer can be called with beside its tokens.
CALLS = {
  'all tokens': {},
  'one token': {'token_index': 2},
  "each example's token": {'token_index': jnp.array([1, 3])},
  'layers': {'layers': (0, 2)},
  'context': {'context': jnp.ones((2, 3, WIDTH))},
}


@functools.cache
def variables_and_tokens(lora=None, call='all tokens'):
  tokens = jax.random.normal(jax.random.key(0), (2, TOKENS, WIDTH))
  context = CALLS[call].get('context')
  init = Transformer(FOUR_BLOCKS, lora=lora).init
  return init(jax.random.key(1), tokens, context=context), tokens


def output_and_gradients(remat, call='all tokens', lora=None, cuts=()):
  """Returns a Transformer's output and gradients.

  With `cuts`, its blocks are given as a tuple of stacks that end there.
  """
  variables, tokens = variables_and_tokens(lora, call)
  module: Any = Transformer(FOUR_BLOCKS, remat=remat, lora=lora)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params):
    blocks = params['blocks']
    if cuts:
      parts = {k: jnp.split(v, cuts) for k, v in _flat(blocks).items()}
      blocks = tuple(
        _nested(blocks, {k: part[i] for k, part in parts.items()})
        for i in range(len(cuts) + 1)
      )
    result = module.apply({'params': {'blocks': blocks}}, tokens, **CALLS[call])
    return jnp.sum(jnp.sin(result)), result

  (_, result), gradients = jax.jit(loss)(variables['params'])
  return result, _flat(gradients)


def _flat(tree):
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _nested(like, leaves):
  return jax.tree.unflatten(jax.tree.structure(like), leaves.values())


def assert_same(actual, expected):
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5)
  assert actual[1].keys() == expected[1].keys()
  for name, gradient in expected[1].items():
    np.testing.assert_allclose(
      actual[1][name], gradient, rtol=1e-4, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize('remat', ['full:0.5,none', 'save_mlp:0.25,full'])
@pytest.mark.parametrize('call', CALLS)
def test_two_policies_change_no_number(remat, call):
  expected = output_and_gradients('none', call)
  assert_same(output_and_gradients(remat, call), expected)


def test_two_policies_change_no_number_of_adapters_or_of_several_stacks():
  lora = LoRAConfig(rank=2, alpha=2.0)
  expected = output_and_gradients('none', lora=lora)
  assert_same(output_and_gradients('full:0.5,none', lora=lora), expected)
  expected = output_and_gradients('none', 'one token')
  for cuts in ([1], [3], [1, 2]):
    actual = output_and_gradients('full:0.5,none', 'one token', cuts=cuts)
    assert_same(actual, expected)


def scans(remat, **call):
  """Returns how many blocks each scan has, and whether it recomputes them."""
  variables, tokens = variables_and_tokens()
  module = Transformer(FOUR_BLOCKS, remat=remat)
  apply = functools.partial(module.apply, **call)
  made = []
  for equation in jax.make_jaxpr(apply)(variables, tokens).eqns:
    if equation.primitive.name == 'scan':
      body = [e.params for e in equation.params['jaxpr'].eqns]
      policies = [e['policy'] for e in body if 'policy' in e]
      own = [p for p in policies if p in REMAT_POLICIES.values()]
      made.append((equation.params['length'], own[0] if own else None))
  return made


def test_blocks_compute_again_what_their_policy_says():
  full, mlp = REMAT_POLICIES['full'], REMAT_POLICIES['save_mlp']
  assert scans('none') == [(4, None)]
  assert scans('full') == [(4, full)]
  assert scans('full:0.75,save_mlp') == [(3, full), (1, mlp)]
  assert scans('full:.5,none') == [(2, full), (2, None)]
  # The last block computes one token, apart from the others.
  assert scans('full:0.5,none', token_index=0) == [(2, full), (1, None)]
  assert scans('full:0.5,none', layers=(2,)) == [(2, full), (1, None)]


def test_the_share_is_of_the_blocks_from_the_first_on():
  assert remat_policies('dots', 2) == ['dots', 'dots']
  assert remat_policies('full:0.7,none', 3) == ['full', 'full', 'none']
  assert remat_policies('full:0.1,none', 2) == ['none', 'none']


@pytest.mark.parametrize(
  'remat', ['half', 'full:0.5', 'full:2,none', 'full:0.5,some', 'full,none', '']
)
def test_what_is_no_policy_is_refused(remat):
  with pytest.raises(UsageError, match=f"remat='{remat}': choose one of none"):
    remat_policies(remat, 4)


@pytest.mark.parametrize(
  ('field', 'value'),
  [('remat', 'full:2,none'), ('text_remat', 'dot'), ('remat', '')],
)
def test_a_config_without_a_policy_is_refused(field, value):
  config: Any = tiny_config()
  config.model[field] = value
  with pytest.raises(UsageError, match=f"model.{field}='{value}': choose one"):
    check_config(config)


@functools.cache
def tiny_batch():
  image = TINY.image.image_size
  return (
    jax.random.normal(jax.random.key(2), (3, image, image, 3)),
    jax.random.randint(jax.random.key(3), (3, 8), 0, 64),
  )


@functools.cache
def tiny_params():
  return DualEncoder(TINY).init(jax.random.key(0), *tiny_batch())['params']


@functools.cache
def gradients(remat):
  module = DualEncoder(TINY, remat=remat)

  def loss(params):
    outputs: Any = module.apply({'params': params}, *tiny_batch())
    image, text, scale, _ = outputs
    return (scale * image @ text.T)[0, 1] + image.sum() + text.sum()

  return jax.jit(jax.grad(loss))(tiny_params())


@pytest.mark.parametrize(
  'policy', [*sorted(set(REMAT_POLICIES) - {'none'}), ('full', 'save_mlp')]
)
def test_remat_changes_no_gradient(policy):
  for plain, again in zip(
    jax.tree.leaves(gradients('none')),
    jax.tree.leaves(gradients(policy)),
    strict=True,
  ):
    np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('remat', 'expected'),
  [
    ('full', [True, True]),
    (('full', 'none'), [True, False]),
    (('none', 'full:0.5,none'), [False, True]),
  ],
)
def test_each_tower_has_its_policy(remat, expected):
  module = DualEncoder(TINY, remat=remat)
  jaxpr = jax.make_jaxpr(module.apply)({'params': tiny_params()}, *tiny_batch())
  full = REMAT_POLICIES['full']
  assert expected == [
    any(e.params.get('policy') is full for e in scan.params['jaxpr'].eqns)
    for scan in jaxpr.eqns
    if scan.primitive.name == 'scan'
  ]


def test_the_first_blocks_of_a_resnet_have_the_first_of_two_policies():
  config: Any = TINY_RESNET.image
  images = jnp.ones((2, 32, 32, 3))
  tower = ResNet(config, remat='full:0.5,none')
  variables = jax.eval_shape(tower.init, jax.random.key(0), images)
  plain = jax.eval_shape(ResNet(config).init, jax.random.key(0), images)
  assert jax.tree.structure(variables) == jax.tree.structure(plain)
  jaxpr = jax.make_jaxpr(tower.apply)(variables, images)
  policies = [e.params['policy'] for e in jaxpr.eqns if 'policy' in e.params]
  assert policies == 2 * [REMAT_POLICIES['full']]
