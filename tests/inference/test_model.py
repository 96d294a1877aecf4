"""The Python API of DESIGN 3.5, on a tiny model."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.images import preprocess
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference import model as model_module
from clip_jax.inference.encoders import make_encoders
from clip_jax.models.dual_encoder import normalize
from clip_jax.parallel.mesh import make_mesh
from clip_jax.parallel.partitioning import shardings
from tests.golden_models import GOLDENS
from tests.tiny_run import tiny_description, tiny_model, tiny_params, write_run

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
TEXTS = ['red square', 'small blue circle', 'cat face', 'green', 'big red']


@pytest.fixture(scope='module')
def model():
  return tiny_model()


@pytest.fixture
def paths(tmp_path):
  for i, pixels in enumerate(PIXELS):
    Image.fromarray(pixels).save(tmp_path / f'{i}.png')
  return [tmp_path / f'{i}.png' for i in range(len(PIXELS))]


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def test_features_are_float32_rows_of_unit_length(model):
  for features in (model.encode_image(PIXELS), model.encode_text(TEXTS)):
    assert features.dtype == np.float32
    assert features.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)


def test_features_are_those_of_the_module(model):
  images = np.stack([preprocess(p, model.preprocessing) for p in PIXELS])
  floats = normalize(
    jax.numpy.asarray(images), model.preprocessing.mean, model.preprocessing.std
  )
  tokens = jax.numpy.asarray(model.tokenizer(TEXTS))
  image, text, scale, _ = model.module.apply(model.variables, floats, tokens)
  np.testing.assert_allclose(model.encode_image(PIXELS), image, atol=1e-6)
  np.testing.assert_allclose(model.encode_text(TEXTS), text, atol=1e-6)
  assert model.logit_scale == pytest.approx(float(scale), rel=1e-6)


def test_every_kind_of_image_gives_the_same_features(model, paths):
  expected = model.encode_image(PIXELS)
  kinds = {
    'paths': paths,
    'strings': [str(path) for path in paths],
    'bytes': [png(pixels) for pixels in PIXELS],
    'pil': [Image.fromarray(pixels) for pixels in PIXELS],
    'arrays': list(PIXELS),
    'generator': (Image.fromarray(pixels) for pixels in PIXELS),
    'mixed': [paths[0], str(paths[1]), PIXELS[2], png(PIXELS[3]), PIXELS[4]],
  }
  for name, images in kinds.items():
    actual = model.encode_image(images)
    np.testing.assert_allclose(actual, expected, atol=1e-6, err_msg=name)


def test_one_image_or_text_is_a_batch_of_one(model, paths):
  expected = model.encode_image(PIXELS)[:1]
  pil = Image.fromarray(PIXELS[0])
  for image in (paths[0], str(paths[0]), PIXELS[0], png(PIXELS[0]), pil):
    np.testing.assert_allclose(model.encode_image(image), expected, atol=1e-6)
  np.testing.assert_allclose(
    model.encode_text(TEXTS[0]), model.encode_text(TEXTS)[:1], atol=1e-6
  )


def test_nothing_in_is_nothing_out(model):
  assert model.encode_image([]).shape == (0, 16)
  assert model.encode_text([]).shape == (0, 16)
  assert model.image_tokens([]).shape == (0, 4, 32)
  assert model.classify([], ['a', 'b']).shape == (0, 2)


def test_the_batch_does_not_matter(model):
  together = model.encode_image(PIXELS[:3]), model.encode_text(TEXTS[:3])
  apart = [model.encode_image(p) for p in PIXELS[:3]]
  np.testing.assert_allclose(np.concatenate(apart), together[0], atol=1e-6)
  apart = [model.encode_text(t) for t in TEXTS[:3]]
  np.testing.assert_allclose(np.concatenate(apart), together[1], atol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_the_batch_size_does_not_matter(model, batch_size):
  small = tiny_model(batch_size=batch_size)
  many = np.concatenate([PIXELS, PIXELS[::-1], PIXELS])
  np.testing.assert_allclose(
    small.encode_image(many), model.encode_image(many), atol=1e-6
  )
  np.testing.assert_allclose(
    small.encode_text(TEXTS * 3), model.encode_text(TEXTS * 3), atol=1e-6
  )


def test_variables_stay_whole_when_the_model_encodes():
  fresh = tiny_model()
  before = fresh.variables
  fresh.encode_text(TEXTS)
  for variables in (before, fresh.variables):
    jax.tree.map(
      np.testing.assert_array_equal, variables, {'params': tiny_params()}
    )


def test_threads_may_share_a_new_model(model):
  fresh = tiny_model()
  with ThreadPoolExecutor(8) as pool:
    result = list(pool.map(lambda _: fresh.encode_text(TEXTS), range(8)))
  for features in result:
    np.testing.assert_array_equal(features, model.encode_text(TEXTS))


def test_new_parameters_and_other_counts_compile_few_programs():
  compiled = make_encoders(
    tiny_description().model,
    'float32',
    tiny_description().preprocessing.mean,
    tiny_description().preprocessing.std,
    None,
    True,
  )
  compiled.encode_image.clear_cache()
  for count in (1, 2, 3, 4, 5, 4, 3):
    tiny_model().encode_image(PIXELS[:count])
  assert compiled.encode_image._cache_size() == 4  # 1, 2, 4, 8


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2), (3, 1, 1)])
def test_a_mesh_gives_the_same_features(model, sizes):
  count = np.prod(sizes)
  mesh = make_mesh(*sizes, devices=jax.devices()[:count])
  params = jax.device_put(tiny_params(), shardings(tiny_params(), mesh))
  spread = model_module.Model(tiny_description(), {'params': params}, mesh=mesh)
  np.testing.assert_allclose(
    spread.encode_image(PIXELS), model.encode_image(PIXELS), atol=1e-6
  )
  np.testing.assert_allclose(
    spread.encode_text(TEXTS), model.encode_text(TEXTS), atol=1e-6
  )
  assert spread.logit_scale == pytest.approx(model.logit_scale)


def test_bfloat16_is_close_and_float32_outside(model):
  rough = tiny_model(dtype='bfloat16').encode_image(PIXELS)
  assert rough.dtype == np.float32
  np.testing.assert_allclose(rough, model.encode_image(PIXELS), atol=0.01)
  np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, rtol=1e-5)


def test_pooled_features_are_one_product_away_from_the_joint_space(model):
  pooled, features = model.encode_image_with_pooled(PIXELS)
  assert pooled.shape == (5, 32) and pooled.dtype == np.float32
  np.testing.assert_allclose(features, model.encode_image(PIXELS), atol=1e-6)
  projected = pooled @ np.asarray(model.params['image_projection']['kernel'])
  lengths = np.linalg.norm(projected, axis=1, keepdims=True)
  np.testing.assert_allclose(projected / lengths, features, atol=1e-5)
  nothing = model.encode_image_with_pooled([])
  assert [x.shape for x in nothing] == [(0, 32), (0, 16)]


def test_pooled_features_of_a_resnet_are_projected_by_its_pooling():
  model = clip_jax.load(GOLDENS / 'open_clip_resnet')
  size = model.config.image.image_size
  pixels = RNG.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
  pooled, features = model.encode_image_with_pooled(pixels)
  assert pooled.shape == features.shape == (2, model.config.embed_dim)
  lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
  assert (np.abs(lengths - 1) > 1e-2).all()
  np.testing.assert_allclose(pooled / lengths, features, atol=1e-5)


def test_image_tokens_count_layers_from_both_ends(model):
  first, last = model.image_tokens(PIXELS, 0), model.image_tokens(PIXELS, 1)
  assert first.shape == (5, 4, 32)
  assert first.dtype == np.float32
  assert np.abs(first - last).max() > 1e-3
  np.testing.assert_array_equal(model.image_tokens(PIXELS, -1), last)
  np.testing.assert_array_equal(model.image_tokens(PIXELS), first)  # -2


@pytest.mark.parametrize('layer', [2, -3])
def test_a_layer_that_is_not_there_is_refused(model, layer):
  with pytest.raises(UsageError, match=rf'layer={layer}: .* 2 blocks'):
    model.image_tokens(PIXELS, layer)


def test_classifier_averages_templates_and_includes_the_temperature(model):
  templates = ['big {}', '{} face {}']
  weights = model.classifier(['red', 'cat'], templates)
  directions = model.classifier(['red', 'cat'], templates, unit_length=True)
  for array in (weights, directions):
    assert array.shape == (16, 2)
    assert array.dtype == np.float32
  rows = model.encode_text(['big cat', 'cat face cat']).mean(0)
  expected = rows / np.linalg.norm(rows)
  np.testing.assert_allclose(directions[:, 1], expected, atol=1e-6)
  np.testing.assert_allclose(weights, model.logit_scale * directions, rtol=1e-6)


def test_a_classifiers_logits_are_those_of_classify(model):
  labels = ['red', 'green', 'blue']
  logits = model.encode_image(PIXELS) @ model.classifier(labels)
  powers = np.exp(logits - logits.max(1, keepdims=True))
  np.testing.assert_allclose(
    model.classify(PIXELS, labels), powers / powers.sum(1, keepdims=True),
    rtol=1e-5,
  )  # fmt: skip


def test_independent_labels_need_a_bias(model):
  with pytest.raises(UsageError, match=r'need a model with a logit bias'):
    model.classify(PIXELS, ['red', 'green'], independent=True)


def test_classifier_is_made_once(model, monkeypatch):
  weights = model.classifier(['one', 'two'])
  monkeypatch.setattr(model, 'encode_text', None)
  assert model.classifier(['one', 'two']) is weights
  directions = model.classifier(['one', 'two'], unit_length=True)
  assert model.classifier(['one', 'two'], unit_length=True) is directions
  for array in (weights, directions):
    with pytest.raises(ValueError, match='read-only'):
      array[0] = 0


def test_braces_in_names_are_harmless(model):
  weights = model.classifier(['{0}', '{name}', '{}'], unit_length=True)
  expected = model.encode_text(['{0}', '{name}', '{}']).T
  np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_classify_is_the_softmax_of_scaled_similarities(model):
  labels = ['red', 'green', 'blue']
  probabilities = model.classify(PIXELS, labels)
  logits = model.logit_scale * (
    model.encode_image(PIXELS) @ model.encode_text(labels).T
  )
  expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  ('labels', 'templates', 'message'),
  [
    ([], ['{}'], 'no labels'),
    (['cat', ' '], ['{}'], 'label 2 of 2 is empty'),
    (['cat'], ['a photo'], "template 'a photo' has no slot"),
    (['cat'], [], 'templates='),
    ('cat,dog', ['{}'], 'give a list of names'),
    (['cat'], '{}', 'give a list of at least one'),
    (['cat'], [str, len], "a template gave 3 for 'cat', and not a text"),
  ],
)
def test_wrong_labels_and_templates_are_refused(
  model, labels, templates, message
):
  with pytest.raises(UsageError, match=message):
    model.classifier(labels, templates)


def test_labels_and_templates_may_be_arrays(model):
  labels, templates = ['cat', 'dog'], ['a {}', '{}']
  expected = model.classifier(labels, templates)
  for dtype in (str, object):
    given = [np.array(x, dtype) for x in (labels, templates)]
    np.testing.assert_array_equal(model.classifier(*given), expected)
  with pytest.raises(UsageError, match='no labels'):
    model.classifier(np.array([], str))
  with pytest.raises(UsageError, match=r'templates=\[\]: give a list'):
    model.classifier(labels, np.array([], str))


def test_labels_that_are_one_name_have_equal_columns_and_a_word(capsys):
  model = tiny_model()
  labels = ['crane', 'red', 'crane', 'red_square', 'Red  square']
  weights = model.classifier(labels)
  assert weights.shape == (16, 5)
  np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    'warning: these labels are the same name, so they split its probability: '
    "'crane' (1) and 'crane' (3); 'red_square' (4) and 'Red  square' (5)."
  ]
  probabilities = model.classify(PIXELS, labels)
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
  np.testing.assert_array_equal(probabilities[:, 0], probabilities[:, 2])
  assert capsys.readouterr().err == ''  # said once


def test_templates_may_be_functions(model):
  functions = [lambda x: f'big {x}', '{} face', lambda x: x.upper()]
  weights = model.classifier(['red', 'cat'], functions)
  texts = ['big {}', '{} face']
  again = [lambda x: f'big {x}', '{} face', lambda x: x.upper()]
  same = model.classifier(['red', 'cat'], again)
  assert same is weights  # another function that says the same
  np.testing.assert_allclose(
    model.classifier(['red', 'cat'], functions[:2]),
    model.classifier(['red', 'cat'], texts),
    atol=1e-5,
  )
  np.testing.assert_array_equal(
    model.classifier(['red'], functions[0]),
    model.classifier(['red'], ['big {}']),
  )
  other = model.classifier(['red', 'cat'], [*texts, lambda x: f'green {x}'])
  assert np.abs(other - weights).max() > 1e-3


def test_a_template_with_two_slots_is_questioned_once(model, capsys):
  template = '{},a drawing of {}.'
  for _ in range(2):
    model.classifier(['red'], [template])
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and 'is one prompt with 2 slots' in lines[0]


def test_repr_says_what_it_is(workdir):
  assert repr(tiny_model()) == (
    '<Model: ViT/8 2 x 32, text 2 x 32, 16 pixels, 16 dimensions, tokenizer '
    'sentencepiece of 16 tokens, float32 on cpu>'
  )
  assert f"<Model from '{workdir}': " in repr(clip_jax.load(workdir))
  assert repr(clip_jax.load(workdir)).endswith('on cpu, step 7>')
  loaded = clip_jax.load(GOLDENS / 'hf_siglip', dtype='bfloat16')
  assert 'no tokenizer, bfloat16 on cpu>' in repr(loaded)
  loaded.encode_image(PIXELS)
  assert 'bfloat16 on cpu>' in repr(loaded)


def test_an_image_that_cannot_be_read_is_named(model, paths):
  paths[2].write_bytes(b'junk')
  with pytest.raises(CorruptImageError, match=r'2\.png: not an image'):
    model.encode_image(paths)
  paths[2].unlink()
  with pytest.raises(CorruptImageError, match=r'2\.png: no such file'):
    model.encode_image(paths)
  with pytest.raises(CorruptImageError, match='image 1: not an image'):
    model.encode_image([png(PIXELS[0]), b'junk'])


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (PIXELS[0].astype(np.float32), r'image 1 is an array of float32'),
    (PIXELS[0, :, :, :2], r'image 1 is an array of uint8 \[20, 24, 2\]'),
    (7, 'image 1 is of type int'),
  ],
)
def test_what_is_no_image_is_refused(model, image, message):
  with pytest.raises(UsageError, match=message):
    model.encode_image(iter([PIXELS[0], image]))


def test_what_is_no_text_is_refused(model):
  with pytest.raises(UsageError, match='a text of type int'):
    model.encode_text(iter(['a', 3]))


def test_an_error_while_reading_images_reaches_the_caller(model):
  def images():
    yield PIXELS[0]
    raise FailureError('the disk went away')

  with pytest.raises(FailureError, match='the disk went away'):
    model.encode_image(images())


def test_wrong_options_are_refused():
  with pytest.raises(UsageError, match="dtype='float16'"):
    tiny_model(dtype='float16')
  with pytest.raises(UsageError, match='batch_size=0'):
    tiny_model(batch_size=0)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'), steps=(3, 7))


def test_a_workdir_loads_its_newest_checkpoint(model, workdir):
  loaded = clip_jax.load(workdir)
  assert isinstance(loaded, clip_jax.Model)
  assert (loaded.step, loaded.origin) == (7, str(workdir))
  assert loaded.config == model.config
  np.testing.assert_array_equal(
    loaded.encode_text(TEXTS), model.encode_text(TEXTS)
  )
  np.testing.assert_array_equal(
    loaded.encode_image(PIXELS), model.encode_image(PIXELS)
  )


def test_a_checkpoint_step_loads(workdir):
  assert clip_jax.load(str(workdir / 'checkpoints' / '3')).step == 3


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
  tmp_path, capsys
):
  write_run(tmp_path, steps=(3, 7))
  for file in (tmp_path / 'checkpoints' / '7' / 'params').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  assert clip_jax.load(tmp_path).step == 3
  assert 'cannot be read' in capsys.readouterr().err


def test_no_model_is_one_clear_line(tmp_path):
  empty = tmp_path / 'empty'
  empty.mkdir()
  (tmp_path / 'started' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'pictures').mkdir()
  for name in 'abcde':
    (tmp_path / 'pictures' / f'{name}.png').touch()
  cases = {
    tmp_path / 'none': 'it does not exist',
    empty: 'the folder is empty',
    tmp_path / 'started': 'no complete checkpoint yet',
    tmp_path / 'pictures': r'a.png, b.png, c.png and 2 more',
  }
  for path, message in cases.items():
    with pytest.raises(UsageError, match=message) as caught:
      clip_jax.load(path)
    assert str(path) in str(caught.value)
    assert "Expected a run's workdir" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) != path.exists()
  for name in ('ViT-B/32', 'openai/clip-vit-base-patch32'):
    with pytest.raises(UsageError, match=rf'downloaded .*--preset={name} '):
      clip_jax.load(name)


def test_a_file_that_holds_no_weights_is_one_clear_line(tmp_path):
  path = tmp_path / 'w.safetensors'
  path.write_bytes(RNG.bytes(2000))
  with pytest.raises(UsageError, match='is not a weight file') as caught:
    clip_jax.load(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_the_home_directory_may_be_abbreviated(workdir, monkeypatch):
  monkeypatch.setenv('HOME', str(workdir.parent))
  assert clip_jax.load(Path('~') / workdir.name).step == 7
