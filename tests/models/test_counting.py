"""The formula against the published totals and against XLA's own count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import (
  abstract_variables,
  count_parameters,
  decoder_flops,
  encoding_flops,
  image_flops,
  model_flops_utilization,
  text_flops,
  training_flops,
)
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.presets import PRESETS, resolve
from tests.tiny import (
  TINY,
  TINY_BAG,
  TINY_CAPTIONER,
  TINY_COCA,
  TINY_PREFIXED,
  TINY_RESNET,
)

DECODERS = [TINY_COCA, TINY_CAPTIONER, TINY_PREFIXED, TINY_BAG]

# GFLOPs of one image and one text: open_clip, docs/model_profile.csv.
PUBLISHED = {
  'ViT-B/32': 14.8,
  'ViT-B/16': 41.1,
  'ViT-L/14': 175.3,
  'ViT-L/14@336': 395.2,
}


def assert_counts_what_flax_makes(config: CLIPConfig):
  params = abstract_variables(config)['params']

  def size(prefix):
    trees = [tree for key, tree in params.items() if key.startswith(prefix)]
    return sum(leaf.size for leaf in jax.tree.leaves(trees))

  count = count_parameters(config)
  assert (count.image, count.text) == (size('image'), size('text'))
  assert count.decoder == size('decoder')
  assert count.total == size('')


@pytest.mark.slow
@pytest.mark.parametrize('name', list(PRESETS))
def test_parameters_of_published_shapes_are_those_that_flax_makes(name):
  assert_counts_what_flax_makes(resolve(name))


@pytest.mark.parametrize(
  'image',
  [
    {'layers': (2, 1, 1, 1), 'width': 32, 'heads': 4, 'image_size': 64},
    {},
    {'pooling': 'average', 'class_token': False, 'patch_bias': True},
    {'pooling': 'average', 'projection': 'affine', 'mlp_ratio': 2.7},
    {'pooling': 'attention', 'class_token': False, 'pre_norm': False},
    {'projection': 'none', 'norm_after_pooling': True},
    {'projection': 'mlp', 'mlp_ratio': 2.0},
  ],
)
def test_parameters_are_those_that_flax_makes(image):
  shape = {'width': 32, 'depth': 2, 'heads': 2}
  text = {'vocab_size': 50, 'context_length': 7, 'end_token': 49, **shape}
  vision = {'image_size': 32, 'patch_size': 8, **shape}
  for bias, projection in (
    (None, 'linear'),
    (-10.0, 'affine'),
    (None, 'mlp'),
  ):
    config = CLIPConfig.from_dict(
      {
        'embed_dim': 32,
        'image': image if 'layers' in image else vision | image,
        'text': text | {'projection': projection},
        'initial_logit_bias': bias,
      }
    )
    assert_counts_what_flax_makes(config)


@pytest.mark.parametrize('config', DECODERS)
def test_parameters_of_a_decoder_are_those_that_flax_makes(config):
  assert count_parameters(config).decoder > 1000
  assert_counts_what_flax_makes(config)
  decoder = dataclasses.replace(config.decoder, image_layer=None)
  assert_counts_what_flax_makes(
    dataclasses.replace(TINY_RESNET, decoder=decoder)
  )


@pytest.mark.parametrize('config', DECODERS)
def test_a_decoder_costs_what_xla_counts(config):
  """At widths where products are nearly all, with one block in one chunk."""
  text = dataclasses.replace(config.text, vocab_size=2_000, width=256)
  decoder = config.decoder
  if decoder.depth:
    decoder = dataclasses.replace(decoder, width=256, depth=1)
  config = dataclasses.replace(config, text=text, decoder=decoder)
  module, image = DualEncoder(config), config.image
  seen = {
    'image_tokens': (
      1,
      image.patches + (decoder.image_layer is None),
      image.width,
    ),
    'pooled_image': (1, image.width),
  }[decoder.reads_image]
  states = (1, 8, 256) if decoder.reads == 'text_tower' else None

  def run(variables, seen, tokens, states):
    if config.decoder.reads == 'pooled_image':
      return module.apply(variables, seen, method=lambda m, x: m.decoder(x))
    return module.apply(
      variables,
      tokens,
      seen,
      states,
      method=lambda m, *arguments: m.decoder(*arguments),
    )

  def array(shape, dtype=jnp.float32):
    return None if shape is None else jax.ShapeDtypeStruct(shape, dtype)

  lowered = jax.jit(run).lower(
    abstract_variables(config),
    array(seen),
    array((1, 8), jnp.int32),
    array(states),
  )
  counted = lowered.compile().cost_analysis()['flops']
  assert decoder_flops(config) == pytest.approx(counted, rel=0.05)


def test_a_text_tower_that_is_not_trained_costs_nothing():
  contrastive = training_flops(TINY)
  assert training_flops(TINY_BAG) < contrastive < training_flops(TINY_COCA)


def test_blocks_above_the_one_that_is_read_cost_nothing():
  def flops(layer):
    decoder = dataclasses.replace(TINY_PREFIXED.decoder, image_layer=layer)
    config = dataclasses.replace(TINY_PREFIXED, decoder=decoder)
    return training_flops(config, without_gradient={'image': 1.0})

  assert flops(0) == flops(-2) < flops(-1) == flops(1)
  block = one_block(TINY)
  image = image_flops(TINY) - image_flops(block)
  assert flops(1) - flops(0) == image


@pytest.mark.parametrize('name', list(PUBLISHED))
def test_totals_are_open_clips(name):
  config = resolve(name)
  total = (image_flops(config) + text_flops(config)) / 1e9
  assert total == pytest.approx(PUBLISHED[name], abs=0.06)


def of_xla(config: CLIPConfig, method: str, *layers: tuple[int, ...]) -> float:
  """FLOPs of one example that XLA counts in the compiled tower."""
  size = config.image.image_size
  module = DualEncoder(config)
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, config.text.context_length), jnp.int32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images, tokens)
  x = tokens if method == 'encode_text' else images
  compiled = jax.jit(
    lambda variables, x: module.apply(variables, x, *layers, method=method)
  ).lower(variables, x)
  return compiled.compile().cost_analysis()['flops']


def one_block(config: CLIPConfig) -> CLIPConfig:
  # XLA counts the body of a loop once, whatever the number of turns.
  return dataclasses.replace(
    config,
    image=dataclasses.replace(config.image, depth=1),
    text=dataclasses.replace(config.text, depth=1),
  )


@pytest.mark.parametrize('name', ['ViT-B/32', 'ViT-B/16'])
def test_a_block_in_training_costs_what_xla_counts(name):
  config = one_block(resolve(name))
  counted = of_xla(config, 'encode_image') + of_xla(config, 'encode_text')
  assert training_flops(config) / 3 == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize('tower', ['image', 'text'])
def test_encoding_costs_what_xla_counts(tower):
  config = one_block(resolve('ViT-B/32'))
  flops = dict(zip(('image', 'text'), encoding_flops(config), strict=True))
  counted = of_xla(config, f'encode_{tower}')
  assert flops[tower] == pytest.approx(counted, rel=0.03)


def test_what_is_published_counts_the_last_block_as_all_others():
  config = one_block(resolve('ViT-B/32'))
  whole = of_xla(config, 'image_tokens', (0,))  # without the pooling
  assert image_flops(config) == pytest.approx(whole, rel=0.03)


def test_blocks_cost_the_same_each():
  config = resolve('ViT-B/32')
  deeper = dataclasses.replace(
    config, image=dataclasses.replace(config.image, depth=24)
  )
  shallow = one_block(config)
  block = (image_flops(config) - image_flops(shallow)) / 11
  assert image_flops(deeper) == pytest.approx(
    image_flops(shallow) + 23 * block, rel=1e-12
  )


def test_patches_that_are_left_out_cost_their_embedding_only():
  config = resolve('ViT-B/16')
  half = image_flops(config, 0.5)
  assert 0.45 * image_flops(config) < half < 0.52 * image_flops(config)
  saved = training_flops(config) - training_flops(config, 0.5)
  assert saved / 3 == pytest.approx(image_flops(config) - half, rel=0.1)


def test_a_locked_tower_costs_its_forward_pass():
  config = resolve('ViT-B/16')
  whole = training_flops(config)
  image = (whole - training_flops(config, without_gradient={'image': 1.0})) / 2
  text = (whole - training_flops(config, without_gradient={'text': 1.0})) / 2
  assert image == pytest.approx(image_flops(config), rel=0.1)
  assert image + text == pytest.approx(whole / 3)


def test_utilization_of_a_pod_slice():
  """ViT-B/32: 14.8 GFLOPs a pair forward, less 0.95 that the last blocks leave
  out, so 41.4 with its gradients."""
  mfu = model_flops_utilization(
    resolve('ViT-B/32'), 16_000.0, 'TPU v5 lite', 16
  )
  assert mfu == pytest.approx(16_000 * 41.4e9 / (16 * 197e12), rel=0.01)


def test_a_cpu_has_no_figure():
  config = resolve('ViT-B/32')
  assert model_flops_utilization(config, 1.0, 'cpu', 1) is None
