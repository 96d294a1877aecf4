"""The zero-shot classifier against open_clip's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax import tokenizers
from clip_jax.errors import FailureError
from clip_jax.inference.classifier import softmax, zero_shot_weights
from clip_jax.models.dual_encoder import DualEncoder, unit_length
from tests.golden_models import GOLDENS, load_golden

CASE = json.loads((GOLDENS / 'zero_shot' / 'zero_shot.json').read_text())
ARRAYS = load_file(GOLDENS / 'zero_shot' / 'zero_shot.safetensors')


def test_weights_equal_open_clips():
  golden = load_golden('open_clip_vit_gelu')
  module = DualEncoder(golden.config)
  tokenizer = tokenizers.load('clip')

  def encode_text(texts):
    tokens = tokenizer(list(texts))
    np.testing.assert_array_equal(tokens, ARRAYS['tokens'])
    features = jax.jit(
      lambda tokens: module.apply(
        golden.variables, tokens, method='encode_text'
      )
    )(jnp.asarray(tokens))
    return np.asarray(unit_length(features))

  weights = zero_shot_weights(
    encode_text, CASE['classnames'], CASE['templates']
  )
  assert weights.dtype == np.float32
  np.testing.assert_allclose(weights, ARRAYS['classifier'], rtol=0, atol=1e-5)


def test_features_that_are_not_finite_are_a_failure():
  def encode_text(texts):
    features = np.ones((len(list(texts)), 4), np.float32)
    features[1] = np.nan
    return features

  with pytest.raises(FailureError, match='1 of 3 text embeddings are not fin'):
    zero_shot_weights(encode_text, ['a', 'b', 'c'])


def test_softmax_does_not_overflow():
  logits = np.array([[1000.0, 999.0], [-1000.0, -1000.0]], np.float32)
  expected = [[0.7310586, 0.2689414], [0.5, 0.5]]
  np.testing.assert_allclose(softmax(logits), expected, rtol=1e-5)
