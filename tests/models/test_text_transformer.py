"""The text tower: what it attends to, and where it is pooled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.config import TextTransformerConfig
from clip_jax.models.layers import Transformer
from clip_jax.models.text_transformer import TextTransformer
from tests.models.open_clip_golden import TOLERANCES, load_golden

SMALL = TextTransformerConfig(
  vocab_size=32, context_length=8, end_token=1, width=24, depth=2, heads=3
)
TOKENS = jnp.array([[5, 6, 7, 1, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4, 3, 1]])


@functools.cache
def initialised(config=SMALL):
  tower = TextTransformer(config)
  return tower, jax.jit(tower.init)(jax.random.key(0), TOKENS)


def changed(row, position, value):
  return TOKENS.at[row, position].set(value)


@pytest.mark.parametrize('name', list(TOLERANCES))
def test_residual_stream_of_each_block_equals_open_clips(name):
  golden = load_golden(name)
  text, params = golden.config.text, golden.params['text']
  length = golden.tokens.shape[1]
  x = params['token_embedding']['embedding'][golden.tokens]
  x = jnp.asarray(x + params['position_embedding'][:length])
  stack = Transformer(
    text.depth, text.heads, text.mlp_ratio, text.activation, jnp.float32
  )
  mask = jnp.tril(jnp.ones((length, length), bool))
  for layer in range(text.depth):
    out = stack.apply({'params': params['transformer']}, x, mask, layer)
    golden.check(f'text_block_{layer}', out)


def test_padding_after_the_end_is_not_seen():
  tower, variables = initialised()
  before = tower.apply(variables, TOKENS)
  after = tower.apply(variables, changed(0, 6, 17))
  np.testing.assert_allclose(before, after, atol=1e-6)


def test_without_the_causal_mask_padding_is_seen():
  tower, variables = initialised(dataclasses.replace(SMALL, causal=False))
  before = tower.apply(variables, TOKENS)
  after = tower.apply(variables, changed(0, 6, 17))
  assert np.abs(before[0] - after[0]).max() > 1e-3


def test_pooled_at_the_first_end_token():
  tower, variables = initialised()
  before = tower.apply(variables, TOKENS)
  after = tower.apply(variables, changed(0, 5, SMALL.end_token))
  np.testing.assert_allclose(before, after, atol=1e-6)
  earlier = tower.apply(variables, changed(0, 1, SMALL.end_token))
  assert np.abs(before[0] - earlier[0]).max() > 1e-3


def test_the_last_position_counts_when_the_text_fills_the_context():
  tower, variables = initialised()
  before = tower.apply(variables, TOKENS)
  after = tower.apply(variables, changed(1, 0, 12))
  assert np.abs(before[1] - after[1]).max() > 1e-3
  np.testing.assert_allclose(before[0], after[0], atol=1e-6)
