"""The text tower: what it attends to, and where it is pooled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.models.config import TextTransformerConfig
from clip_jax.models.layers import Transformer
from clip_jax.models.text_transformer import TextTransformer
from tests.golden_models import (
  GOLDENS,
  HUGGING_FACE,
  OPEN_CLIP,
  load_golden,
  tolerance,
)

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


def residual_stream(golden, layer):
  """The tokens after a block of the text tower."""
  text, params = golden.config.text, golden.variables['params']['text']
  length = golden.tokens.shape[1]
  x = params['token_embedding']['embedding'][golden.tokens]
  x = jnp.asarray(x + params['position_embedding'][:length])
  stack = Transformer(text)
  mask = jnp.tril(jnp.ones((length, length), bool)) if text.causal else None
  variables = {'params': params['transformer']}
  return stack.apply(variables, x, mask, layers=(layer,))[0]


@pytest.mark.parametrize('name', OPEN_CLIP)
def test_residual_stream_of_each_block_equals_open_clips(name):
  golden = load_golden(name)
  for layer in range(golden.config.text.depth):
    golden.check(f'text_block_{layer}', residual_stream(golden, layer))


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_residual_stream_of_each_block_equals_that_of_transformers(name):
  golden = load_golden(name)
  for layer in range(golden.config.text.depth):
    out = residual_stream(golden, layer)
    golden.check(f'text_hidden_state_{layer + 1}', out)


@pytest.mark.parametrize(
  ('pooling', 'expected'),
  [
    ('end', 'text_features_first_eos'),
    ('highest', 'text_features_legacy_argmax'),
  ],
)
def test_both_conventions_of_transformers_for_the_end(pooling, expected):
  golden = load_golden('hf_clip')
  rows = load_file(GOLDENS / 'hf_clip' / 'eos_conventions.safetensors')
  text = dataclasses.replace(golden.config.text, pooling=pooling, end_token=115)
  golden = dataclasses.replace(
    golden, config=dataclasses.replace(golden.config, text=text)
  )
  tokens = jnp.asarray(rows['input_ids'].astype(np.int32))
  np.testing.assert_allclose(
    golden.apply(tokens, method='encode_text'),
    rows[expected],
    rtol=0,
    atol=tolerance('hf_clip', 'text_features'),
  )


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


def test_pooled_at_the_last_position_whatever_is_there():
  config = dataclasses.replace(SMALL, pooling='last', causal=False)
  tower, variables = initialised(config)
  before = tower.apply(variables, TOKENS)
  after = tower.apply(variables, changed(0, 7, 9))
  assert np.abs(before[0] - after[0]).max() > 1e-3
