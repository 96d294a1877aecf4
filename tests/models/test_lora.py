"""Low-rank adapters: applied, and merged into the kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig, LoRAConfig
from clip_jax.models.counting import count_parameters
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.layers import Block, Transformer
from clip_jax.models.lora import is_adapter, merge
from clip_jax.trees import flat
from tests.tiny import TINY, TINY_RESNET, TINY_SIGLIP

LORA = LoRAConfig(rank=3, alpha=6.0)
ADAPTED = dataclasses.replace(TINY, lora=LORA)


def init(module, *inputs):
  """Variables with noise everywhere, so that B is not zero."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
    module.init(jax.random.key(0), *inputs),
  )


def inputs_of(config):
  rng = np.random.default_rng(1)
  size, length = config.image.image_size, config.text.context_length
  images = rng.normal(size=(3, size, size, 3)).astype(np.float32)
  tokens = rng.integers(0, 64, (3, length)).astype(np.int32)
  return jnp.asarray(images), jnp.asarray(tokens)


def apply_block(params, x, mask=None):
  """A block whose adapters see the tokens, as the paper's figure 1 has it."""
  own = dict(params)
  adapters = own.pop('lora')
  scale = LORA.alpha / LORA.rank

  def add(call, args, kwargs, context):
    output = call(*args, **kwargs)
    if context.module.name == 'qkv':
      low = jnp.einsum('BLD,DCR->BLCR', args[0], adapters['qkv']['a'])
      change = jnp.einsum('BLCR,CRNK->BLCNK', low, adapters['qkv']['b'])
      return output + scale * change.reshape(output.shape)
    if context.module.name == 'out':
      low = jnp.einsum('BLNK,NKR->BLR', args[0], adapters['out']['a'])
      return output + scale * low @ adapters['out']['b']
    return output

  with nn.intercept_methods(add):
    return Block(TINY.image, jnp.float32).apply({'params': own}, x, mask)


def layer(blocks, i):
  return jax.tree.map(lambda leaf: leaf[i], blocks)


@pytest.fixture(scope='module')
def stack():
  """Two scanned blocks with adapters, tokens, and a causal mask."""
  module = Transformer(TINY.image, lora=LORA)
  x = jax.random.normal(jax.random.key(2), (2, 5, 32))
  return module, init(module, x), x, jnp.tril(jnp.ones((5, 5), bool))


def test_merged_in_a_scan_is_applied_to_the_tokens(stack):
  module, variables, x, mask = stack
  blocks = variables['params']['blocks']
  expected = x
  for i in range(TINY.image.depth):
    expected = apply_block(layer(blocks, i), expected, mask)
  for remat in ('none', 'full'):
    actual = module.clone(remat=remat).apply(variables, x, mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=5e-6)
  token = module.apply(variables, x, mask, 3)
  np.testing.assert_allclose(token, expected[:, 3], rtol=1e-5, atol=5e-6)
  unrolled = {f'block_{i}': layer(blocks, i) for i in (0, 1)}
  actual = module.apply({'params': unrolled}, x, mask, 3)
  np.testing.assert_allclose(actual, expected[:, 3], rtol=1e-5, atol=5e-6)


def test_gradients_are_those_of_the_applied_form(stack):
  module, variables, x, _ = stack

  def applied(params):
    y = x
    for i in range(TINY.image.depth):
      y = apply_block(layer(params['blocks'], i), y)
    return jnp.sum(jnp.sin(y))

  def merged(params):
    return jnp.sum(jnp.sin(module.apply({'params': params}, x)))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    jax.grad(merged)(variables['params']),
    jax.grad(applied)(variables['params']),
  )


@pytest.mark.parametrize(
  'config',
  [ADAPTED, *(
    dataclasses.replace(config, lora=dataclasses.replace(LORA, towers=towers))
    for config, towers in (
      (TINY, ('image',)), (TINY_SIGLIP, ('image', 'text')),
      (TINY_RESNET, ('text',)),
    )
  )],
)  # fmt: skip
def test_a_merged_model_computes_the_same(config):
  images, tokens = inputs_of(config)
  variables = init(DualEncoder(config), images, tokens)
  merged, own = merge(variables, config)
  assert own.lora is None
  assert not any(map(is_adapter, flat(merged)))
  expected = DualEncoder(config).apply(variables, images, tokens)
  actual = DualEncoder(own).apply(merged, images, tokens)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  assert merge(merged, own) == (merged, own)


def test_adapters_begin_without_effect():
  images, tokens = inputs_of(TINY)
  key = jax.random.key(0)
  plain = DualEncoder(TINY).init(key, images, tokens)
  adapted = DualEncoder(ADAPTED).init(key, images, tokens)
  leaves = flat(adapted)
  adapters = {name for name in leaves if is_adapter(name)}
  assert len(adapters) == 8  # two factors of two products in both towers
  for name, leaf in flat(plain).items():
    np.testing.assert_array_equal(leaf, leaves[name])
  assert {*leaves} - {*flat(plain)} == adapters
  assert count_parameters(ADAPTED).total == sum(
    leaf.size for leaf in leaves.values()
  )
  for name in adapters:  # A is random, of each layer and product its own
    spread = len(np.unique(leaves[name])) == leaves[name].size
    assert spread == name.endswith('/a')


def test_a_description_keeps_its_adapters():
  assert CLIPConfig.from_dict(ADAPTED.to_dict()) == ADAPTED
  assert 'lora' not in TINY.to_dict()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rank': -1}, 'model.lora.rank=-1 must be at least 1'),
    ({'alpha': 0.0}, 'model.lora.alpha=0.0 must be a number above 0'),
    ({'towers': ()}, "name 'image', 'text', or both"),
    ({'towers': ('images',)}, "name 'image', 'text', or both"),
  ],
)
def test_impossible_adapters_are_refused(changes, message):
  with pytest.raises(UsageError) as caught:
    dataclasses.replace(LORA, **changes)
  assert message in str(caught.value)


def test_a_resnet_has_no_blocks_to_adapt():
  with pytest.raises(UsageError, match=r"a ResNet: take \('text',\)"):
    dataclasses.replace(TINY_RESNET, lora=LORA)
