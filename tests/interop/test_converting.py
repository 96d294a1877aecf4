"""Models in the layouts of other libraries come back as they were."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.loading import load, read_model
from clip_jax.interop.converting import convert
from tests.golden_models import GOLDENS, HUGGING_FACE, OPEN_CLIP, load_golden
from tests.tiny_run import (
  CAPTIONS,
  tiny_description,
  tiny_model,
  tiny_params,
)

IMPOSSIBLE = {  # and what is said
  ('open_clip_resnet', 'hf'): 'no ResNet in its CLIP: convert with --to=open',
  ('open_clip_vit_gelu/clipa', 'hf'): "cannot express image.pooling='average'",
  ('hf_siglip', 'open_clip'): 'has the published SigLIP shapes only',
}
TEXTS = [
  *CAPTIONS,
  'A Photo of a CAT, 2 dogs\n and the rest; ' * 9,
  '',
]
POSSIBLE = [
  (name, target)
  for name in (*OPEN_CLIP, *HUGGING_FACE)
  for target in ('hf', 'open_clip')
  if (name, target) not in IMPOSSIBLE
]


def same(ours, theirs):
  def check(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)

  jax.tree.map(check, ours, theirs)


def dtypes_in(file):
  """Names of the dtypes in a safetensors file, and how often each."""
  with safe_open(file, 'numpy') as tensors:
    names = [tensors.get_slice(key).get_dtype() for key in tensors.keys()]  # noqa: SIM118
  return {name: names.count(name) for name in names}


def shapes(description):
  """What the model computes with; of the MLPs their width, not its ratio.

  Where the temperature began is of no use to a trained model, and not every
  layout keeps it.
  """
  fields = description.model.to_dict()
  del fields['initial_logit_scale']
  for tower in (fields['image'], fields['text']):
    if 'mlp_ratio' in tower:
      tower['mlp_ratio'] = int(tower['width'] * tower['mlp_ratio'])
  return fields


def weights_of(folder):
  (file,) = folder.glob('*.safetensors')
  return file


@pytest.mark.parametrize(('name', 'target'), POSSIBLE)
def test_every_golden_comes_back_to_the_bit(name, target, tmp_path, capsys):
  golden = load_golden(name)
  loaded = read_model(GOLDENS / name)
  convert(loaded.description, loaded.variables, target, tmp_path / 'out')
  back = read_model(tmp_path / 'out')
  same(back.variables, loaded.variables)
  assert shapes(back.description) == shapes(loaded.description)
  model = load(tmp_path / 'out')
  apply = jax.jit(model.module.apply)
  image, text, scale, bias = apply(
    model.variables, golden.images, golden.tokens
  )
  golden.check('logits_per_image', scale * image @ text.T + bias)
  assert capsys.readouterr().err == ''  # nothing had to be guessed


@pytest.mark.parametrize('target', ['hf', 'open_clip'])
@pytest.mark.parametrize('tower', ['image', 'text'])
def test_a_projection_that_is_not_linear_is_refused(tower, target, tmp_path):
  loaded = read_model(GOLDENS / 'open_clip_vit')
  model = loaded.description.model
  other = dataclasses.replace(getattr(model, tower), projection='mlp')
  description = dataclasses.replace(
    loaded.description, model=dataclasses.replace(model, **{tower: other})
  )
  with pytest.raises(UsageError, match=r"cannot express.*projection='mlp'"):
    convert(description, loaded.variables, target, tmp_path / 'out')


@pytest.mark.parametrize(('name', 'target'), IMPOSSIBLE)
def test_what_a_library_cannot_express_is_said(name, target, tmp_path):
  loaded = read_model(GOLDENS / name)
  message = IMPOSSIBLE[name, target]
  with pytest.raises(UsageError, match=message) as caught:
    convert(loaded.description, loaded.variables, target, tmp_path / 'out')
  assert '\n' not in str(caught.value)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('target', ['hf', 'open_clip'])
def test_a_tokenizer_and_preprocessing_go_along(target, tmp_path):
  loaded = read_model(GOLDENS / 'open_clip_vit_gelu')
  convert(loaded.description, loaded.variables, target, tmp_path / 'out')
  model = load(tmp_path / 'out')
  ours = load(GOLDENS / 'open_clip_vit_gelu')
  rows, expected = model.tokenizer(TEXTS), ours.tokenizer(TEXTS)
  ends = expected.argmax(1)  # behind it, the libraries pad differently
  for row, other, end in zip(rows, expected, ends, strict=True):
    np.testing.assert_array_equal(row[: end + 1], other[: end + 1])
  np.testing.assert_allclose(
    model.encode_text(TEXTS), ours.encode_text(TEXTS), atol=1e-6
  )
  convention = {'hf': 'transformers', 'open_clip': 'open_clip'}[target]
  assert model.preprocessing == dataclasses.replace(
    ours.preprocessing, convention=convention
  )


@pytest.mark.parametrize('target', ['hf', 'open_clip'])
def test_a_trained_model_comes_back_with_its_sentence_piece_tokenizer(
  target, tmp_path
):
  ours = tiny_model()
  convert(
    tiny_description(), {'params': tiny_params()}, target, tmp_path / 'out'
  )
  model = load(tmp_path / 'out')
  same(jax.device_get(model.params), jax.device_get(ours.params))
  np.testing.assert_allclose(
    model.encode_text(CAPTIONS), ours.encode_text(CAPTIONS), atol=1e-6
  )
  pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  np.testing.assert_allclose(
    model.encode_image(pixels), ours.encode_image(pixels), atol=1e-6
  )


def test_a_model_without_a_tokenizer_is_said_to_have_none(tmp_path):
  loaded = read_model(GOLDENS / 'hf_clip')
  for target in ('hf', 'open_clip'):
    converted = convert(
      loaded.description, loaded.variables, target, tmp_path / target
    )
    assert any('without a tokenizer' in d for d in converted.differences)
    assert not any('tokenizer' in name for name in converted.files)
  assert set(converted.files) == set(os.listdir(tmp_path / 'open_clip'))


@pytest.mark.parametrize('target', ['hf', 'open_clip'])
def test_weights_of_two_precisions_become_float32(target, tmp_path):
  """Neither library keeps OpenAI's mixture when it loads."""
  loaded = read_model(GOLDENS / 'archives' / 'openai_state_dict.pt')
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(loaded.variables)}
  assert dtypes == {'float16', 'float32'}
  convert(loaded.description, loaded.variables, target, tmp_path / 'out')
  assert set(dtypes_in(weights_of(tmp_path / 'out'))) == {'F32'}
  back = read_model(tmp_path / 'out').variables
  same(back, jax.tree.map(lambda x: x.astype(np.float32), loaded.variables))


@pytest.mark.parametrize(
  ('dtype', 'code'), [(np.float16, 'F16'), (ml_dtypes.bfloat16, 'BF16')]
)
def test_weights_of_one_precision_keep_it(dtype, code, tmp_path):
  loaded = read_model(GOLDENS / 'open_clip_resnet')

  def half(leaf):
    return leaf if leaf.dtype == np.int32 else leaf.astype(dtype)

  variables = jax.tree.map(half, loaded.variables)
  convert(loaded.description, variables, 'open_clip', tmp_path / 'out')
  result = dtypes_in(weights_of(tmp_path / 'out'))
  assert set(result) == {code, 'I64'}  # torch counts batches in 64 bits
  same(read_model(tmp_path / 'out').variables, variables)


@pytest.mark.parametrize('there', ['a file', 'a folder with a file'])
def test_what_is_there_stays(there, tmp_path):
  out = tmp_path / 'out'
  if there == 'a file':
    out.touch()
  else:
    out.mkdir()
    (out / 'mine').touch()
  with pytest.raises(UsageError, match='exists and is not an empty folder'):
    convert(tiny_description(), {'params': tiny_params()}, 'hf', out)
  assert os.listdir(tmp_path) == ['out']
  assert out.is_file() or os.listdir(out) == ['mine']


def test_an_empty_folder_is_filled_also_the_one_that_we_are_in(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  convert(tiny_description(), {'params': tiny_params()}, 'hf', '.')
  assert (tmp_path / 'config.json').is_file()
  assert os.listdir(tmp_path.parent).count(tmp_path.name) == 1
  names = [name for name in os.listdir(tmp_path.parent) if '.part' in name]
  assert names == []


def test_an_unknown_layout_and_a_missing_folder_are_refused(tmp_path):
  variables = {'params': tiny_params()}
  with pytest.raises(UsageError, match="no layout 'onnx': choose one of hf"):
    convert(tiny_description(), variables, 'onnx', tmp_path / 'out')
  with pytest.raises(UsageError, match='there is no folder'):
    convert(tiny_description(), variables, 'hf', tmp_path / 'no' / 'out')


def test_a_full_disk_leaves_nothing_and_names_the_folder(small_disk):
  loaded = read_model(GOLDENS / 'open_clip_vit')
  out = small_disk / 'out'
  with pytest.raises(FailureError) as caught:
    convert(loaded.description, loaded.variables, 'open_clip', out)
  assert str(caught.value).startswith(f'{out}')
  assert 'could not be written' in str(caught.value)
  assert '.part' not in str(caught.value)
  assert os.listdir(small_disk) == []


def test_the_files_are_json_that_a_person_can_read(tmp_path):
  convert(tiny_description(), {'params': tiny_params()}, 'hf', tmp_path / 'out')
  text = (tmp_path / 'out' / 'config.json').read_text()
  assert json.loads(text)['architectures'] == ['CLIPModel']
  assert text.endswith('}\n')
