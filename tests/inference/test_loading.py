"""`clip_jax.load` on every kind of reference: the goldens' own features."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import clip_jax
from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.errors import UsageError
from clip_jax.inference.export import export
from clip_jax.models.config import LoRAConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.positions import resize_grid
from clip_jax.tokenizers import sentence_piece
from clip_jax.training.state import TrainState
from tests.golden_models import (
  GOLDENS,
  HUGGING_FACE,
  OPEN_CLIP,
  load_golden,
  tolerance,
)
from tests.tiny_run import CAPTIONS, tiny_description, tiny_model, write_run

ARCHIVES = GOLDENS / 'archives'
PUBLISHED = (*OPEN_CLIP, *HUGGING_FACE)
FEATURES = {
  **dict.fromkeys(
    OPEN_CLIP, ('image_features_normalized', 'text_features_normalized')
  ),
  **dict.fromkeys(HUGGING_FACE, ('image_embeds', 'text_embeds')),
}


def applied(model, golden):
  apply = jax.jit(model.module.apply)
  return apply(model.variables, golden.images, golden.tokens)


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_golden_computes_what_its_library_computes(name, capsys):
  golden = load_golden(name)
  model = clip_jax.load(GOLDENS / name)
  assert model.origin == str(GOLDENS / name)
  image, text, scale, bias = applied(model, golden)
  golden.check(FEATURES[name][0], image)
  golden.check(FEATURES[name][1], text)
  golden.check('logits_per_image', scale * image @ text.T + bias)
  assert model.logit_scale == pytest.approx(float(scale), rel=1e-6)
  assert (model.logit_bias or 0) == pytest.approx(float(bias), rel=1e-6)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', PUBLISHED)
def test_token_features_are_the_goldens(name):
  golden = load_golden(name)
  model = clip_jax.load(GOLDENS / name)
  np.testing.assert_allclose(
    model.encode_tokens(np.asarray(golden.tokens)),
    golden.outputs[FEATURES[name][1]],
    atol=tolerance(name, FEATURES[name][1]),
  )


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_images_become_the_features_of_their_library(name):
  """`encode_image` and `image_tokens` from the pixels behind the inputs.

  The images before they were resized are no use here: the inputs are of
  torchvision's resize, a grey level from Pillow's.
  """
  golden = load_golden(name)
  model = clip_jax.load(GOLDENS / name)
  std, mean = model.preprocessing.std, model.preprocessing.mean
  grey = (np.asarray(golden.images) * std + mean) * 255
  pixels = np.round(grey).astype(np.uint8)
  assert np.abs(grey - pixels).max() < 1e-3  # they were images
  golden.check('image_embeds', model.encode_image(pixels))
  depth = golden.config.image.depth
  first = int(golden.config.image.class_token)
  golden.check(
    f'vision_hidden_state_{depth - 1}',
    np.concatenate(
      [
        golden.outputs[f'vision_hidden_state_{depth - 1}'][:, :first],
        model.image_tokens(pixels, layer=-2),
      ],
      axis=1,
    ),
  )


@pytest.mark.parametrize('name', OPEN_CLIP[:3])
def test_penultimate_tokens_are_the_goldens(name):
  golden = load_golden(name)
  model = clip_jax.load(GOLDENS / name)
  layer = golden.config.image.depth - 2
  [tokens] = model.module.apply(
    model.variables, golden.images, (layer,), method='image_tokens'
  )
  golden.check(f'image_block_{layer}', tokens, np.s_[:, 1:])


def test_the_stages_of_a_resnet_are_its_tokens():
  golden = load_golden('open_clip_resnet')
  model = clip_jax.load(GOLDENS / 'open_clip_resnet')
  pixels = np.zeros((2, 64, 64, 3), np.uint8)
  for layer, (count, width) in enumerate(
    [(256, 32), (64, 64), (16, 128), (4, 256)]
  ):
    [tokens] = model.module.apply(
      model.variables, golden.images, (layer,), method='image_tokens'
    )
    maps = golden.outputs[f'image_stage_{layer + 1}']  # NCHW
    theirs = maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)
    np.testing.assert_allclose(
      tokens,
      theirs,
      rtol=0,
      atol=tolerance('open_clip_resnet', f'image_stage_{layer + 1}'),
    )
    assert model.image_tokens(pixels, layer).shape == (2, count, width)
  with pytest.raises(UsageError, match='has 4 stages, so use 0 to 3'):
    model.image_tokens(pixels, 4)


@pytest.mark.parametrize('name', ['openai_state_dict', 'openai_torchscript'])
def test_openais_archives_compute_as_their_halves_say(name, capsys):
  golden = load_golden('open_clip_vit')
  model = clip_jax.load(ARCHIVES / f'{name}.pt')
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(model.variables)}
  assert dtypes == {'float32'}
  image, text, _, _ = applied(model, golden)
  for ours, theirs in (
    (image, golden.outputs['image_features_normalized']),
    (text, golden.outputs['text_features_normalized']),
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
  assert capsys.readouterr().err == ''


def test_a_guess_is_said_once_on_stderr(capsys):
  path = ARCHIVES / 'open_clip_checkpoint.pt'
  model = clip_jax.load(path)
  out, err = capsys.readouterr()
  assert out == ''
  assert err.startswith(f'warning: {path} does not say its activation')
  assert err.count('\n') == 1
  golden = load_golden('open_clip_vit')
  golden.check('image_features_normalized', applied(model, golden)[0])
  other = clip_jax.load(path, activation='gelu', heads=(2, 1))
  assert capsys.readouterr().err == ''
  assert other.config.text.activation == 'gelu'


def test_what_says_all_of_itself_takes_no_hint(tmp_path):
  run = write_run(tmp_path / 'run')
  export(tiny_model(), tmp_path / 'out', platforms=['cpu'])
  for reference in (
    GOLDENS / 'hf_clip',
    GOLDENS / 'hf_clip' / 'model.safetensors',
    run,
    run / 'checkpoints' / '7',
    tmp_path / 'out',
  ):
    for hint in ({'preset': 'ViT-B/32'}, {'activation': 'gelu'}):
      with pytest.raises(UsageError, match='is for a bare weight file'):
        clip_jax.load(reference, **hint)


@pytest.mark.parametrize(
  ('name', 'size', 'expected'),
  [
    ('hf_clip', 56, 'hf_clip.to_7x7'),
    ('hf_siglip', 56, 'hf_siglip.to_7x7'),
  ],
)
def test_another_image_size_as_transformers_has_it(name, size, expected):
  tables = load_file(
    GOLDENS / 'positional_resize/positional_resize.safetensors'
  )
  model = clip_jax.load(GOLDENS / name, image_size=size)
  assert model.config.image.image_size == size
  assert model.preprocessing.image_size == size
  positions = model.params['image']['position_embedding']
  np.testing.assert_allclose(positions, tables[expected], atol=1e-5)
  features = model.encode_image(np.zeros((2, 30, 40, 3), np.uint8))
  assert np.isfinite(features).all()
  assert model.image_tokens(np.zeros((1, 9, 9, 3), np.uint8)).shape[1] == 49


@pytest.mark.parametrize('name', ['open_clip_vit', 'open_clip_resnet'])
def test_another_image_size_as_open_clip_has_it(name):
  golden = load_golden(name)
  grid = golden.config.image.grid
  model = clip_jax.load(GOLDENS / name, image_size=96)
  table = np.asarray(golden.variables['params']['image']['position_embedding'])
  wanted = 96 // (64 // grid)
  np.testing.assert_allclose(
    model.params['image']['position_embedding'],
    resize_grid(
      table, (grid, grid), (wanted, wanted), first=1, method='open_clip'
    ),
    atol=1e-6,
  )
  features = model.encode_image(np.full((1, 50, 70, 3), 99, np.uint8))
  assert features.shape == (1, golden.config.embed_dim)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'image_size': 33}, 'not a multiple of 32'),
    ({'image_size': 0}, 'image_size=0'),
    ({'context_length': 0}, 'context_length=0'),
    ({'dtype': 'float16'}, "dtype='float16': use float32 or bfloat16"),
    ({'batch_size': 0}, 'batch_size=0 must be at least 1'),
    ({'tokenizer': 'words'}, "no tokenizer 'words'"),
  ],
)
def test_options_that_cannot_be_are_one_line(options, message):
  with pytest.raises(UsageError, match=message) as caught:
    clip_jax.load(GOLDENS / 'open_clip_resnet', **options)
  assert '\n' not in str(caught.value)


def test_another_context_length_reaches_the_tokenizer():
  model = clip_jax.load(GOLDENS / 'open_clip_vit_gelu', context_length=20)
  assert model.config.text.context_length == 20
  assert model.tokenizer(['a cat']).shape == (1, 20)
  assert model.params['text']['position_embedding'].shape == (20, 12)
  assert model.encode_text(['a cat', 'a dog']).shape == (2, 24)


def test_texts_that_fit_have_the_features_that_they_had():
  name, texts = GOLDENS / 'open_clip_vit_gelu', ['a cat', 'two dogs']
  expected = clip_jax.load(name).encode_text(texts)
  longer = clip_jax.load(name, context_length=100)
  np.testing.assert_allclose(longer.encode_text(texts), expected, atol=2e-6)
  moved = clip_jax.load(
    name, context_length=100, text_positions='interpolate'
  ).encode_text(texts)
  assert np.abs(moved - expected).max() > 1e-3


def test_the_tokenizer_of_a_published_vocabulary_comes_by_itself():
  model = clip_jax.load(GOLDENS / 'open_clip_vit_gelu')
  fixture = load_file(GOLDENS / 'zero_shot' / 'zero_shot.safetensors')
  described = json.loads((GOLDENS / 'zero_shot/zero_shot.json').read_text())
  weights = model.classifier(
    described['classnames'], described['templates'], unit_length=True
  )
  np.testing.assert_allclose(weights, fixture['classifier'], atol=1e-5)


@pytest.mark.parametrize('name', ['hf_clip', 'hf_siglip', 'open_clip_resnet'])
def test_a_model_without_a_tokenizer_says_so_when_it_is_needed(name):
  model = clip_jax.load(GOLDENS / name)
  pixels = np.zeros((1, 20, 20, 3), np.uint8)
  assert model.encode_image(pixels).shape == (1, model.config.embed_dim)
  with pytest.raises(UsageError, match='came without a tokenizer') as caught:
    model.encode_text(['a cat'])
  assert '\n' not in str(caught.value)
  assert name in str(caught.value)


def test_another_tokenizer_than_the_models(tmp_path):
  sentence_piece.train(CAPTIONS, 25, tmp_path / 'pieces.model')
  spec = f'siglip:{tmp_path / "pieces.model"}'
  model = clip_jax.load(GOLDENS / 'hf_siglip', tokenizer=spec)
  assert model.tokenizer.context_length == 16
  rows = model.tokenizer(['big red square'])
  np.testing.assert_allclose(
    model.encode_text(['big red square']), model.encode_tokens(rows), atol=1e-6
  )
  large = clip_jax.load(GOLDENS / 'hf_siglip', tokenizer='clip')
  with pytest.raises(UsageError, match='49,408 ids, and its text tower 100'):
    large.encode_text(['a cat'])


def test_a_tokenizer_with_another_end_token_is_refused(tmp_path):
  """The text tower would find no end, and read the first token of all."""
  sentence_piece.train(CAPTIONS, 25, tmp_path / 'pieces.model')
  spec = f'sentencepiece:{tmp_path / "pieces.model"}'
  model = clip_jax.load(GOLDENS / 'hf_clip', tokenizer=spec)
  with pytest.raises(UsageError, match='and its text tower looks for 119'):
    model.encode_text(['big red square'])


@pytest.mark.parametrize('name', ['open_clip_resnet', 'hf_siglip'])
def test_bfloat16_is_close(name):
  golden = load_golden(name)
  model = clip_jax.load(GOLDENS / name, dtype='bfloat16')
  image, text, _, _ = applied(model, golden)
  assert image.dtype == np.float32
  for ours, theirs in ((image, 0), (text, 1)):
    exact = golden.outputs[FEATURES[name][theirs]]
    cosines = (np.asarray(ours) * exact).sum(1)
    assert cosines.min() > 0.999
    assert np.abs(ours - exact).max() > 1e-5  # it was not computed in float32


def test_images_as_displayed_are_an_option_of_any_model():
  plain = clip_jax.load(GOLDENS / 'hf_clip')
  shown = clip_jax.load(GOLDENS / 'hf_clip', as_displayed=True)
  assert (plain.preprocessing.background, plain.preprocessing.exif) == (
    None,
    False,
  )
  assert (shown.preprocessing.background, shown.preprocessing.exif) == (
    'white',
    True,
  )


def test_an_older_run_loads_as_it_was_trained(tmp_path):
  """Descriptions of before had no class_token, and other fields besides."""
  run = write_run(tmp_path / 'run')
  expected = clip_jax.load(run).encode_text(CAPTIONS)
  file = run / 'checkpoints' / '7' / 'description' / 'metadata'
  fields = json.loads(file.read_text())
  for name in ('class_token', 'patch_bias', 'norm_after_pooling', 'norm_eps'):
    del fields['model']['image'][name]
  for name in ('pooling', 'norm_eps', 'projection'):
    del fields['model']['text'][name]
  del fields['preprocessing']['convention']
  file.write_text(json.dumps(fields))
  np.testing.assert_array_equal(
    clip_jax.load(run).encode_text(CAPTIONS), expected
  )


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  shutil.copytree(GOLDENS / 'hf_clip', tmp_path / 'm')
  assert clip_jax.load('~/m').config == load_golden('hf_clip').config


def test_the_adapters_of_a_run_are_merged(tmp_path):
  lora = LoRAConfig(rank=2, alpha=4.0)
  own = tiny_description()
  adapted = dataclasses.replace(
    own, model=dataclasses.replace(own.model, lora=lora)
  )
  module, rng = DualEncoder(adapted.model), np.random.default_rng(0)
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  tokens = jnp.asarray(tiny_model().tokenizer(CAPTIONS[:2]))
  params = jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32),
    module.init(jax.random.key(0), images, tokens)['params'],
  )
  checkpoints = Checkpoints(tmp_path, keep=1)
  state = TrainState(jnp.int32(3), params, (jnp.int32(3),))
  checkpoints.save(state, adapted, seed=0)
  checkpoints.close()
  model = clip_jax.load(tmp_path)
  assert model.description == own
  assert model.step == 3
  expected = module.apply({'params': params}, images, tokens)
  actual = model.module.apply(model.variables, images, tokens)
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
