"""The tokens that vision-language models read, against the libraries' own."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import clip_jax
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.inference.model import Model
from clip_jax.models.description import Description
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.image_tokens import image_tokens, pooled_and_block
from clip_jax.models.layers import LayerNorm
from tests.golden_models import GOLDENS, load_golden
from tests.tiny import TINY, TINY_RESNET, TINY_SIGLIP

DEEP = dataclasses.replace(TINY, image=dataclasses.replace(TINY.image, depth=4))
SMALL = {'deep': DEEP, 'siglip': TINY_SIGLIP, 'resnet': TINY_RESNET}


def pixels_of(name):
  """The images behind a golden's inputs, as uint8."""
  golden, model = load_golden(name), clip_jax.load(GOLDENS / name)
  std, mean = model.preprocessing.std, model.preprocessing.mean
  grey = (np.asarray(golden.images) * std + mean) * 255
  return golden, model, np.round(grey).astype(np.uint8)


def test_llava_reads_clip_as_transformers_gives_it():
  """`vision_feature_layer=[-2, -1]`, with the strategies 'default' and 'full'.

  The vision tower's hidden states are the residual stream without a LayerNorm.
  """
  golden, model, pixels = pixels_of('hf_clip')
  depth = golden.config.image.depth
  whole = model.image_tokens(pixels, (-2, -1), class_token=True)
  patches = model.image_tokens(pixels, (-2, -1))
  for i, layer in enumerate((depth - 1, depth)):
    golden.check(f'vision_hidden_state_{layer}', whole[i])
    golden.check(f'vision_hidden_state_{layer}', patches[i], np.s_[:, 1:])


def test_paligemma_and_idefics_read_siglip_as_transformers_gives_it():
  """`last_hidden_state`: all patches, after the last LayerNorm."""
  golden, model, pixels = pixels_of('hf_siglip')
  tokens = model.image_tokens(pixels, -1, final_norm=True)
  golden.check('vision_last_hidden_state', tokens)
  assert np.abs(tokens - model.image_tokens(pixels, -1)).max() > 0.1


def test_images_of_native_aspect_have_theirs_too():
  folder = GOLDENS / 'hf_siglip2'
  inputs = load_file(folder / 'inputs.safetensors')
  images = [inputs[f'raw_image_{i}'] for i in range(5)]
  tokens = clip_jax.load(folder).image_tokens(images, -1, final_norm=True)
  own = inputs['pixel_attention_mask'].astype(bool)
  theirs = load_file(folder / 'outputs.safetensors')['last_hidden_state']
  np.testing.assert_allclose(tokens[own], theirs[own], atol=1e-5)
  assert not tokens[~own].any() and not own.all()


@functools.cache
def small_model(name):
  return model_of(SMALL[name])


def model_of(config):
  size = config.image.image_size
  init = jax.jit(DualEncoder(config).init)
  variables = init(
    jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros((1, 8), int)
  )
  description = Description(config, None, Preprocessing(image_size=size))
  return Model(description, jax.tree.map(np.asarray, variables))


def noise(model, count=3):
  size = model.config.image.image_size
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize('name', SMALL)
def test_layers_together_are_each_alone_in_the_order_asked_for(name):
  model = small_model(name)
  images, depth = noise(model), model.config.image.depth
  asked = (-1, 0, depth - 1, -2)
  together = model.image_tokens(images, asked)
  assert isinstance(together, list)
  for layer, tokens in zip(asked, together, strict=True):
    alone = model.image_tokens(images, layer)
    assert tokens.shape == alone.shape and tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, alone, rtol=1e-4, atol=1e-5)
  for none, tokens in zip(model.image_tokens([], asked), together, strict=True):
    assert none.shape == (0, *tokens.shape[1:])


def test_one_pass_gives_all_layers():
  """So it costs no more than its last layer alone."""
  module, images = DualEncoder(DEEP), jnp.zeros((1, 16, 16, 3))
  tokens = jnp.zeros((1, 8), jnp.int32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images, tokens)

  def blocks(*layers):
    """The turns of all loops over blocks."""
    jaxpr = jax.make_jaxpr(
      lambda v, x: module.apply(v, x, layers, method='image_tokens')
    )(variables, images)
    scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'scan']
    return sum(scan.params['length'] for scan in scans)

  assert blocks(3) == blocks(0, 1, 3) == blocks(2, 3) == 4
  assert blocks(1) == 2


def test_the_final_norm_is_the_towers_last_and_the_class_token_the_first():
  model = small_model('deep')
  images = noise(model)
  plain = model.image_tokens(images, 1, class_token=True)
  assert plain.shape == (3, 5, 32)
  np.testing.assert_allclose(
    model.image_tokens(images, 1), plain[:, 1:], rtol=1e-5, atol=1e-6
  )
  ln_post = {'params': model.params['image']['ln_post']}
  expected: Any = LayerNorm().apply(ln_post, jnp.asarray(plain))
  np.testing.assert_allclose(
    model.image_tokens(images, 1, class_token=True, final_norm=True),
    expected,
    atol=1e-5,
  )
  last = model.image_tokens(images, -1, class_token=True, final_norm=True)
  pooled, _ = model.encode_image_with_pooled(images)
  np.testing.assert_allclose(last[:, 0], pooled, atol=1e-5)


@pytest.mark.parametrize('name, layer, options, message', [
  ('deep', 4, {}, 'layer=4: the image tower has 4 blocks, so use 0 to 3'),
  ('deep', (0, -5), {}, 'layer=-5: the image tower has 4 blocks'),
  ('deep', (), {}, 'layer=(): name one, or more'),
  ('deep', True, {}, 'layer=True: the image tower has 4 blocks'),
  ('resnet', (0, 4), {}, 'layer=4: the image tower has 4 stages'),
  ('resnet', 0, {'class_token': True}, 'the image tower has no class token'),
  ('resnet', 0, {'final_norm': True}, 'a ResNet ends without a LayerNorm'),
  ('siglip', 0, {'class_token': True}, 'the image tower has no class token'),
])  # fmt: skip
def test_what_is_not_there_is_refused_in_a_line(name, layer, options, message):
  model = small_model(name)
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    model.image_tokens(noise(model), layer, **options)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('layer', [0, 2, 3])
def test_a_block_beside_the_pooled_vector(layer):
  tower = small_model('deep')
  module, variables = tower.module, tower.variables
  images = jnp.asarray(noise(tower), jnp.float32) / 255

  def read(model, images):
    return (
      *pooled_and_block(model.image, images, layer, None),
      image_tokens(model.image, images, (layer,))[0],
      model.image(images),
    )

  outputs: Any = module.apply(variables, images, method=read)
  pooled, tokens, *expected = outputs
  np.testing.assert_allclose(tokens, expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(pooled, expected[1], rtol=1e-4, atol=1e-5)


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch):
  page = (GOLDENS.parents[1] / 'clip_jax/inference/README.md').read_text()
  section = page.split('## In a vision-language model')[1]
  code = section.split('```python')[1].split('```')[0]
  deep = dataclasses.replace(TINY.image, depth=12)
  models = {
    'ViT-L-14-336px.pt': dataclasses.replace(TINY, image=deep),
    'siglip-so400m': TINY_SIGLIP,
  }
  loaded = {name: model_of(x) for name, x in models.items()}
  monkeypatch.setattr(clip_jax, 'load', loaded.get)
  monkeypatch.chdir(tmp_path)
  Image.fromarray(noise(loaded['siglip-so400m'])[0]).save('a.png')
  names: dict[str, Any] = {}
  exec(code, names)
  shapes = [names[x].shape for x in ('llava', 'vip_llava', 'paligemma')]
  assert shapes == [(1, 4, 32), (1, 4, 160), (1, 4, 32)]
