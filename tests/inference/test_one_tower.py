"""Half of a model, as transformers' classes for one tower save it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.errors import UsageError
from clip_jax.inference.export import export
from clip_jax.inference.loading import read_model
from tests.golden_models import GOLDENS, load_golden

FAMILIES = {'hf_clip': 'clip', 'hf_siglip': 'siglip'}
SIDES = {'vision': 'image', 'text': 'text'}


def half(folder, name, side, *, whole_config=False, projected=True, bare=False):
  """One side of a golden model, in files of its own.

  Args:
    whole_config: the config.json is that of both sides.
    projected: the class is one 'WithProjection'.
    bare: the keys go without the tower's name.
  """
  folder.mkdir()
  for file in (GOLDENS / name).glob('*.json'):
    shutil.copy(file, folder)
  config = json.loads((folder / 'config.json').read_text())
  if not whole_config:
    inner = config[f'{side}_config']
    (folder / 'config.json').write_text(json.dumps(inner))
  projection = {'vision': 'visual_projection', 'text': 'text_projection'}[side]
  starts = (f'{side}_model.', *([f'{projection}.'] if projected else []))
  weights = {
    key.removeprefix(f'{side}_model.') if bare else key: array
    for key, array in load_file(GOLDENS / name / 'model.safetensors').items()
    if key.startswith(starts)
  }
  save_file(weights, folder / 'model.safetensors')
  return folder


def golden_pixels(name):
  """The golden's inputs as pixels, and the features of them."""
  golden, model = load_golden(name), clip_jax.load(GOLDENS / name)
  std, mean = model.preprocessing.std, model.preprocessing.mean
  grey = (np.asarray(golden.images) * std + mean) * 255
  return np.round(grey).astype(np.uint8), golden


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize(
  'options', [{}, {'whole_config': True}, {'bare': True}]
)
def test_an_image_tower_alone_sees_images(tmp_path, capsys, name, options):
  model = clip_jax.load(half(tmp_path / 'm', name, 'vision', **options))
  err = capsys.readouterr().err
  assert err.count('\n') == 1
  assert 'holds an image tower alone, without a text one' in err
  pixels, golden = golden_pixels(name)
  golden.check('image_embeds', model.encode_image(pixels))
  whole = clip_jax.load(GOLDENS / name)
  np.testing.assert_allclose(
    model.image_tokens(pixels), whole.image_tokens(pixels), atol=1e-6
  )
  pooled, encoded = model.encode_image_with_pooled(pixels)
  assert pooled.shape == (len(pixels), golden.config.image.width)
  golden.check('image_embeds', encoded)
  for call in (
    lambda: model.encode_text(['a cat']),
    lambda: model.encode_tokens(np.zeros((1, 20), np.int32)),
    lambda: model.classify(pixels, ['a cat', 'a dog']),
    lambda: model.classifier(['a cat', 'a dog']),
    lambda: model.tokenizer,
  ):
    with pytest.raises(UsageError, match='an image tower alone: texts cannot'):
      call()


@pytest.mark.parametrize('name', FAMILIES)
def test_a_text_tower_alone_reads_texts(tmp_path, name):
  model = clip_jax.load(half(tmp_path / 'm', name, 'text'))
  golden = load_golden(name)
  golden.check('text_embeds', model.encode_tokens(np.asarray(golden.tokens)))
  for call in (model.encode_image, model.image_tokens):
    with pytest.raises(UsageError, match='a text tower alone: images cannot'):
      call(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize('whole_config', [False, True])
def test_without_its_projection_the_pooled_vector_is_the_feature(
  tmp_path, whole_config
):
  folder = half(
    tmp_path / 'm', 'hf_clip', 'vision', projected=False,
    whole_config=whole_config,
  )  # fmt: skip
  pixels, golden = golden_pixels('hf_clip')
  pooled = clip_jax.load(GOLDENS / 'hf_clip').encode_image_with_pooled(pixels)[
    0
  ]
  features = clip_jax.load(folder).encode_image(pixels)
  unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
  assert features.shape == (len(pixels), golden.config.image.width)
  np.testing.assert_allclose(features, unit, atol=1e-6)


def test_what_needs_both_says_so(tmp_path):
  folder = half(tmp_path / 'm', 'hf_clip', 'vision')
  with pytest.raises(UsageError, match='has no text tower, and both are'):
    read_model(folder)
  with pytest.raises(UsageError, match='has no text tower, and an export'):
    export(clip_jax.load(folder), tmp_path / 'out')


def test_half_of_a_tower_is_damage(tmp_path):
  folder = half(tmp_path / 'm', 'hf_clip', 'vision', whole_config=True)
  weights = load_file(folder / 'model.safetensors')
  del weights['vision_model.post_layernorm.bias']
  save_file(weights, folder / 'model.safetensors')
  with pytest.raises(clip_jax.errors.FailureError, match='missing: vision_mod'):
    clip_jax.load(folder)


@pytest.mark.parametrize('prefix', ['', 'module.', 'state_dict.model.'])
@pytest.mark.parametrize('side', ['image', 'text'])
def test_a_tower_alone_in_the_layout_of_open_clip(
  tmp_path, capsys, side, prefix
):
  source = GOLDENS / 'open_clip_vit'
  shutil.copy(source / 'config.json', tmp_path)
  weights = {
    prefix + key: array
    for key, array in load_file(source / 'model.safetensors').items()
    if key.startswith('visual.') == (side == 'image')
  }
  save_file(weights, tmp_path / 'model.safetensors')
  half, whole = clip_jax.load(tmp_path), clip_jax.load(source)
  assert f'{side} tower alone' in capsys.readouterr().err
  if side == 'text':
    tokens = np.asarray(load_golden('open_clip_vit').tokens)
    result, wanted = (x.encode_tokens(tokens) for x in (half, whole))
  else:
    size = whole.preprocessing.side
    pixels = np.random.default_rng(0).integers(
      0, 256, (3, size, size, 3), np.uint8
    )
    result, wanted = (x.encode_image(pixels) for x in (half, whole))
  np.testing.assert_allclose(result, wanted, atol=1e-6)
