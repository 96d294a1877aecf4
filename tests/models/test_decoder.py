"""Decoders see what they may, and score captions alone or many at once.

That their likelihoods are those of a formula is in
tests/objectives/test_predictive.py.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig, DecoderConfig
from clip_jax.models.decoder import (
  TokenLikelihood,
  caption_mask,
  distinct_words,
  likeliest_tokens,
)
from clip_jax.models.dual_encoder import DualEncoder
from tests.tiny import (
  TINY,
  TINY_BAG,
  TINY_CAPTIONER,
  TINY_COCA,
  TINY_PREFIXED,
  TINY_RESNET,
  TINY_SIGLIP,
)

IMAGES, END = 3, 1
DECODERS = {
  'coca': TINY_COCA,
  'captioner': TINY_CAPTIONER,
  'prefixed': TINY_PREFIXED,
  'bag': TINY_BAG,
}
each_caption_decoder = pytest.mark.parametrize(
  'config', [TINY_COCA, TINY_CAPTIONER, TINY_PREFIXED]
)


def images_of(config):
  size = config.image.image_size
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(IMAGES, size, size, 3)), jnp.float32)


def captions(count, length=8, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, 64, (count, length), dtype=np.int32)
  for row in tokens:
    row[rng.integers(1, length) :] = END
  return jnp.asarray(tokens)


@functools.cache
def variables_of(config):
  init = jax.jit(DualEncoder(config).init)
  variables = init(jax.random.key(0), images_of(config), captions(IMAGES))
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32),
    variables['params'],
  )
  return {**variables, 'params': params}


def outputs(config, tokens, *names, of=None):
  return DualEncoder(config).apply(
    of or variables_of(config),
    images_of(config),
    tokens,
    frozenset(names),
    method='outputs',
  )


def log_likelihoods(config, tokens):
  """Of each token of one caption for each image, [B, T]."""
  names = ['image_tokens']
  if config.decoder.reads == 'text_tower':
    names.append('text_tokens')
  towers = outputs(config, tokens, *names)
  return DualEncoder(config).apply(
    variables_of(config),
    tokens,
    towers['image_tokens'],
    towers.get('text_tokens'),
    method=lambda model, *arguments: model.decoder(*arguments),
  )


@each_caption_decoder
def test_a_token_depends_on_those_before_it_and_on_the_image(config):
  tokens = captions(IMAGES)
  plain = log_likelihoods(config, tokens)
  changed = log_likelihoods(config, tokens.at[:, 4].add(1))
  np.testing.assert_array_equal(plain[:, :4], changed[:, :4])
  assert (np.abs(plain - changed)[:, 4:] > 1e-4).all()
  same = jnp.broadcast_to(tokens[:1], tokens.shape)
  assert (np.ptp(log_likelihoods(config, same), axis=0) > 1e-4).all()


@pytest.mark.parametrize('name', DECODERS)
def test_many_captions_score_as_each_alone(name):
  config = DECODERS[name]
  tokens, module = captions(5, 6), DualEncoder(config)
  seen = outputs(config, captions(IMAGES), config.decoder.reads_image)
  seen = seen[config.decoder.reads_image]

  def scores(tokens):
    return module.apply(
      variables_of(config), seen, tokens, method='caption_scores'
    )

  together = scores(tokens)
  assert together.shape == (IMAGES, 5)
  alone = [scores(row[None])[:, 0] for row in tokens]
  np.testing.assert_allclose(together, np.stack(alone, 1), rtol=2e-5)
  # What comes after the end token does not matter.
  padded = jnp.concatenate([tokens, jnp.full((5, 2), 7)], axis=1)
  np.testing.assert_allclose(scores(padded), together, rtol=2e-5)


@each_caption_decoder
def test_a_caption_scores_the_sum_of_its_tokens(config):
  tokens = jnp.broadcast_to(captions(1), (IMAGES, 8))
  each = log_likelihoods(config, tokens)
  expected = jnp.where(caption_mask(tokens, END), each, 0).sum(1)
  seen = outputs(config, tokens, 'image_tokens')['image_tokens']
  result = DualEncoder(config).apply(
    variables_of(config), seen, tokens[:1], method='caption_scores'
  )
  np.testing.assert_allclose(result[:, 0], expected, rtol=2e-5)


@each_caption_decoder
def test_the_likeliest_token_is_that_of_the_highest_likelihood(config):
  tokens = captions(IMAGES)
  seen = outputs(config, tokens, 'image_tokens')['image_tokens']
  best = DualEncoder(config).apply(
    variables_of(config), seen, tokens, method=likeliest_tokens
  )
  assert best.shape == tokens.shape
  own = log_likelihoods(config, tokens)
  for position in (0, 3, 7):
    better = tokens.at[:, position].set(best[:, position])
    changed = log_likelihoods(config, better)[:, position]
    assert (changed >= own[:, position]).all()
    assert changed.min() > -np.log(64)  # likelier than a guess


@pytest.mark.parametrize('layer', [None, 0, -1])
def test_a_decoder_reads_the_block_that_it_names(layer):
  decoder = dataclasses.replace(TINY_PREFIXED.decoder, image_layer=layer)
  config = dataclasses.replace(TINY_PREFIXED, decoder=decoder)
  tokens = captions(IMAGES)
  read = outputs(config, tokens, 'image_tokens', 'pooled_image')

  def expected(model, images):
    if layer is None:
      return model.image.pooled_and_tokens(images)[1]
    return model.image_tokens(images, (layer % 2,))[0]

  wanted = DualEncoder(config).apply(
    variables_of(config), images_of(config), method=expected
  )
  np.testing.assert_allclose(read['image_tokens'], wanted, atol=1e-5)
  whole = outputs(TINY, tokens, 'pooled_image', of=variables_of(config))
  np.testing.assert_allclose(
    read['pooled_image'], whole['pooled_image'], atol=1e-5
  )


def test_a_bag_scores_at_most_nothing_and_that_for_the_words_it_predicts():
  """Whatever their number: the divergence of a distribution from itself."""
  decoder = DualEncoder(TINY_BAG).bind(variables_of(TINY_BAG)).decoder
  logits = np.full(64, -30.0, np.float32)
  logits[[5, 9, 11]] = 1.0
  kernel = decoder.variables['params']['logits']['kernel']
  variables = {
    'params': {'logits': {'kernel': 0 * kernel, 'bias': jnp.asarray(logits)}}
  }
  tokens = jnp.asarray(
    [[5, 9, 11, 1, 7], [9, 5, 5, 11, 1], [5, 9, 1, 7, 7], [1, 5, 9, 11, 1]]
  )
  scores = decoder.clone(parent=None).apply(
    variables, jnp.zeros((1, 32)), tokens, method='scores'
  )[0]
  np.testing.assert_allclose(scores[:2], 0, atol=1e-5)
  np.testing.assert_allclose(scores[2], np.log(2 / 3), rtol=1e-4)
  assert scores[3] < -1e6  # no words at all


@pytest.mark.parametrize('length', [1, 8, 13, 16])
def test_chunks_of_positions_have_the_likelihoods_of_all(length):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(3, length, 4)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, 9, (3, length)))
  module = TokenLikelihood(9, jnp.float32)
  variables = module.init(jax.random.key(0), x, tokens)
  logits = jax.nn.log_softmax(x @ variables['params']['kernel'])
  expected = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
  np.testing.assert_allclose(
    module.apply(variables, x, tokens), expected, rtol=1e-4, atol=1e-6
  )


def test_logits_of_all_positions_are_never_in_memory():
  batch, length, width, vocabulary = 8, 64, 16, 4096
  module = TokenLikelihood(vocabulary, jnp.float32)
  x = jax.ShapeDtypeStruct((batch, length, width), jnp.float32)
  tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x, tokens)

  def loss(variables, x, tokens):
    return module.apply(variables, x, tokens).sum()

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(variables, x, tokens)
  needed = compiled.compile().memory_analysis().temp_size_in_bytes
  assert needed < batch * length * vocabulary * 4 / 2


def test_words_are_distinct_and_come_before_the_end():
  tokens = jnp.asarray([[5, 6, 5, 1, 7, 1], [1, 5, 5, 5, 5, 5], [2] * 6])
  words = distinct_words(tokens, END)
  assert words.astype(int).tolist() == [
    [1, 1, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0],
  ]
  assert caption_mask(tokens, END).sum(1).tolist() == [4, 1, 6]


AVERAGE = dataclasses.replace(
  TINY,
  image=dataclasses.replace(
    TINY.image, pooling='average', norm_after_pooling=True
  ),
)


@pytest.mark.parametrize('config', [TINY, TINY_SIGLIP, AVERAGE, TINY_RESNET])
def test_tokens_come_beside_the_features_of_the_same_pass(config):
  plain = ('image_features', 'text_features', 'pooled_image')
  alone = outputs(config, captions(IMAGES), *plain)
  result = outputs(
    config, captions(IMAGES), *plain, 'image_tokens', 'text_tokens'
  )
  for name in plain:
    np.testing.assert_allclose(result[name], alone[name], rtol=1e-4, atol=1e-5)
  count = config.image.patches + getattr(config.image, 'class_token', 0)
  width = config.image.pooled_width
  assert result['image_tokens'].shape == (IMAGES, count, width)
  assert result['text_tokens'].shape == (IMAGES, 8, config.text.width)
  if config is TINY:  # its first token is what is pooled
    np.testing.assert_array_equal(
      result['image_tokens'][:, 0], result['pooled_image']
    )


@pytest.mark.parametrize('name', DECODERS)
def test_remat_changes_no_gradient(name):
  config, tokens = DECODERS[name], captions(IMAGES)
  seen = outputs(config, tokens, config.decoder.reads_image)
  seen = seen[config.decoder.reads_image]

  def gradient(remat):
    def loss(variables):
      return (
        DualEncoder(config, remat=remat)
        .apply(variables, seen, tokens, method='caption_scores')
        .sum()
      )

    return jax.jit(jax.grad(loss))(variables_of(config))['params']['decoder']

  for plain, again in zip(
    jax.tree.leaves(gradient('none')),
    jax.tree.leaves(gradient('full')),
    strict=True,
  ):
    np.testing.assert_allclose(plain, again, rtol=1e-3, atol=1e-4)


LLAVA = {'reads': 'image_prefix', 'width': 32, 'depth': 1, 'heads': 4}


def test_a_resnet_has_no_block_to_read():
  with pytest.raises(UsageError, match=r'image_layer=-2 is a block of a ViT'):
    dataclasses.replace(
      TINY_RESNET, decoder=DecoderConfig(**LLAVA, image_layer=-2)
    )


def test_a_description_without_a_decoder_is_as_it_was():
  assert 'decoder' not in TINY.to_dict()
  assert CLIPConfig.from_dict(TINY.to_dict()) == TINY
  for config in DECODERS.values():
    assert CLIPConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'reads': 'pixels'}, "model.decoder.reads='pixels': choose one of"),
    ({'reads': 'tokens', 'width': 32, 'depth': 2}, 'say model.decoder.heads'),
    ({'reads': 'pooled_image', 'width': 8}, 'leave out model.decoder.width'),
    (
      {'reads': 'tokens', 'width': 30, 'depth': 1, 'heads': 4},
      'model.decoder.width=30 does not split over model.decoder.heads=4',
    ),
    (
      {'reads': 'text_tower', 'width': 16, 'depth': 1, 'heads': 2},
      'model.decoder.width=16 must be model.text.width=32',
    ),
    ({'reads': 'pooled_image', 'image_layer': -2}, 'model.decoder.image_layer'),
    (
      {**LLAVA, 'image_layer': 2},
      'image_layer=2: the image tower has 2 blocks, so use 0 to 1, or -2 to -1',
    ),
    ({'reads': 'tokens', 'layers': 3}, "model.decoder has no field 'layers'"),
    ({'width': 3}, 'missing model.decoder.reads'),
  ],
)
def test_impossible_decoders_are_refused(fields, message):
  with pytest.raises(UsageError, match=re.escape(message)):
    CLIPConfig.from_dict({**TINY.to_dict(), 'decoder': fields})


def test_a_decoder_does_not_go_on_from_a_tower_that_sees_all():
  with pytest.raises(UsageError, match=r'needs model.text.causal=True'):
    dataclasses.replace(
      TINY_SIGLIP,
      decoder=DecoderConfig('text_tower', width=32, depth=1, heads=4),
    )
