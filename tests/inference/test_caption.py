"""Captions are written token by token, always the likeliest."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.inference.model import Model
from clip_jax.models.config import DecoderConfig
from clip_jax.models.decoder import likeliest_tokens
from clip_jax.models.dual_encoder import DualEncoder, normalize
from tests.tiny_run import tiny_description, tiny_model

PIXELS = np.random.default_rng(0).integers(
  0, 256, (5, 16, 16, 3), dtype=np.uint8
)


@functools.cache
def captioner(reads):
  """A model with random weights, which ends its captions where it likes."""
  shape = {} if reads == 'pooled_image' else dict(width=32, depth=1, heads=4)
  own = tiny_description()
  config = dataclasses.replace(
    own.model, decoder=DecoderConfig(reads, **shape, only=True)
  )
  init = jax.jit(DualEncoder(config).init)
  variables = init(
    jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16), int)
  )
  rng = np.random.default_rng(3)
  noisy = jax.tree.map(
    lambda x: np.asarray(x + 0.4 * rng.normal(size=x.shape), np.float32),
    variables,
  )
  return Model(dataclasses.replace(own, model=config), noisy)


@pytest.mark.parametrize('reads', ['tokens', 'text_tower', 'image_prefix'])
def test_a_caption_is_the_likeliest_token_after_those_before_it(reads):
  model = captioner(reads)
  tokenizer, length = model.tokenizer, model.config.text.context_length
  module, mean = model.module, model.preprocessing.mean
  images = normalize(jnp.asarray(PIXELS), mean, model.preprocessing.std)
  tokens = jnp.zeros((5, length), jnp.int32)
  seen = module.apply(
    model.variables,
    images,
    tokens,
    frozenset({'image_tokens'}),
    method='outputs',
  )['image_tokens']
  for i in range(length):
    best = module.apply(model.variables, seen, tokens, method=likeliest_tokens)
    tokens = tokens.at[:, i].set(best[:, i])
  expected = []
  for row in np.asarray(tokens).tolist():
    own = row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row
    expected.append(tokenizer.decode(own).strip())
  assert model.caption(PIXELS) == expected
  assert len(set(expected)) > 1
  assert model.caption(PIXELS[0]) == expected[:1]
  assert model.caption([]) == []


def test_models_that_write_nothing_say_so():
  with pytest.raises(UsageError, match='has no caption decoder'):
    tiny_model().caption(PIXELS)
  with pytest.raises(UsageError, match='bag of words, which has no order'):
    captioner('pooled_image').caption(PIXELS)
