"""The two-way tables: every key is accounted for, and comes back as it was."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.errors import FailureError
from clip_jax.interop import big_vision, hugging_face_keys, layouts
from clip_jax.interop.layouts import Row, Table
from clip_jax.interop.npz_file import write_npz
from clip_jax.interop.published_model import read_published, weights_in
from clip_jax.interop.weight_files import open_tensors
from tests.golden_models import GOLDENS, HUGGING_FACE, OPEN_CLIP, load_golden

DIRECTORIES = [*OPEN_CLIP, *HUGGING_FACE]
ARCHIVES = ['openai_state_dict', 'openai_torchscript', 'open_clip_checkpoint']
PLACES = [
  *(GOLDENS / name for name in DIRECTORIES),
  *(GOLDENS / 'archives' / f'{name}.pt' for name in ARCHIVES),
]


def weights_of(path):
  """What a file, or the one of a directory, holds by key."""
  with open_tensors(weights_in(path)) as tensors:
    return {name: np.array(tensors.read(name)) for name in tensors.infos}


def assert_bit_identical(theirs, back):
  assert back.keys() == theirs.keys()
  for key, expected in theirs.items():
    assert back[key].dtype == expected.dtype, key
    assert back[key].shape == expected.shape, key
    assert back[key].tobytes() == expected.tobytes(), key


@pytest.mark.parametrize('path', PLACES, ids=lambda path: path.stem)
def test_there_and_back_is_bit_identical(path):
  foreign = read_published(path)
  back = layouts.write(
    foreign.variables,
    foreign.table,
    foreign.description.model,
    foreign.constants,
  )
  assert_bit_identical(weights_of(path), back)


def big_vision_weights(stacked):
  """The golden SigLIP's weights as big_vision has them."""
  golden = load_golden('hf_siglip')
  table = big_vision.table(golden.config, stacked)
  return layouts.write(golden.variables, table, golden.config)


@pytest.mark.parametrize(
  'stacked', [frozenset(), frozenset({'img', 'txt'}), frozenset({'txt'})]
)
def test_big_vision_there_and_back(tmp_path, stacked):
  theirs = big_vision_weights(stacked)
  assert theirs['params/t'].shape == (1,)
  assert theirs['params/img/pos_embedding'].shape == (1, 16, 48)
  block = 'params/txt/Encoder_0/encoderblock'
  query = 'MultiHeadDotProductAttention_0/query/kernel'
  if 'txt' in stacked:
    assert theirs[f'{block}/{query}'].shape == (2, 36, 3, 12)
  else:
    assert theirs[f'{block}_1/{query}'].shape == (36, 3, 12)
  write_npz(tmp_path / 'siglip.npz', theirs)
  foreign = read_published(tmp_path / 'siglip.npz')
  back = layouts.write(
    foreign.variables, foreign.table, foreign.description.model
  )
  assert_bit_identical(theirs, back)
  jax.tree.map(
    np.testing.assert_array_equal,
    foreign.variables,
    load_golden('hf_siglip').variables,
  )


def test_bfloat16_and_float16_stay_what_they_are():
  golden = load_golden('hf_clip')
  for dtype in (np.float16, jax.numpy.bfloat16):
    variables = jax.tree.map(lambda x, d=dtype: x.astype(d), golden.variables)
    theirs = layouts.write(
      variables, hugging_face_keys.table(golden.config), golden.config
    )
    assert {x.dtype for x in theirs.values()} == {np.dtype(dtype)}


def test_another_dtype_is_given_where_it_is_asked_for():
  foreign = read_published(
    GOLDENS / 'archives' / 'openai_state_dict.pt', dtype=np.dtype(np.float32)
  )
  kinds = {leaf.dtype for leaf in jax.tree.leaves(foreign.variables)}
  assert kinds == {np.dtype(np.float32)}


def test_arrays_are_aligned_for_a_device_to_take_them():
  for leaf in jax.tree.leaves(read_published(GOLDENS / 'hf_clip').variables):
    assert leaf.ctypes.data % 64 == 0


@pytest.fixture
def copy(tmp_path):
  """A golden directory whose weights a test may change."""

  def change(name, edit):
    folder = tmp_path / 'copy'
    shutil.copytree(GOLDENS / name, folder)
    weights = load_file(folder / 'model.safetensors')
    edit(weights)
    save_file(weights, folder / 'model.safetensors')
    return folder

  return change


def test_all_keys_that_are_wrong_are_named_in_one_error(copy):
  def edit(weights):
    del weights['ln_final.bias']
    del weights['visual.proj']
    weights['visual.extra'] = np.zeros(3, np.float32)
    weights['logit_scale'] = np.zeros(2, np.float32)
    weights['ln_final.weight'] = np.zeros(65, np.float32)

  folder = copy('open_clip_vit', edit)
  with pytest.raises(FailureError) as caught:
    read_published(folder)
  message = str(caught.value)
  assert 'missing: ln_final.bias, visual.proj' in message
  assert 'not expected: visual.extra' in message
  assert 'ln_final.weight [65], not [64]' in message
  assert 'logit_scale [2], not []' in message
  assert str(folder) in message
  assert '\n' not in message


def test_old_buffers_of_positions_are_taken_and_given_back(copy):
  ids = {
    'text_model.embeddings.position_ids': np.arange(20)[None],
    'vision_model.embeddings.position_ids': np.arange(17)[None],
  }
  folder = copy('hf_clip', lambda weights: weights.update(ids))
  foreign = read_published(folder)
  back = layouts.write(
    foreign.variables,
    foreign.table,
    foreign.description.model,
    foreign.constants,
  )
  assert_bit_identical(weights_of(folder), back)


def test_a_buffer_that_contradicts_the_config_is_refused(copy):
  key = 'text_model.embeddings.position_ids'
  folder = copy('hf_clip', lambda w: w.update({key: np.arange(1, 21)[None]}))
  with pytest.raises(FailureError, match=rf'{key} \(it follows from the con'):
    read_published(folder)


INF = np.triu(np.full((32, 32), -np.inf, np.float32), 1)


@pytest.mark.parametrize(
  'mask',
  [
    INF,
    INF[None, None],
    INF.astype(np.float16),
    np.triu(np.full((32, 32), np.finfo(np.float32).min), 1),
    np.triu(np.ones((1, 32, 32), bool), 1),
  ],
  ids=['float', 'four axes', 'half', 'least number', 'bool'],
)
def test_a_causal_mask_in_an_archive_is_taken(copy, mask):
  folder = copy('open_clip_vit', lambda w: w.update({'attn_mask': mask}))
  assert 'attn_mask' in read_published(folder).constants


@pytest.mark.parametrize(
  ('mask', 'message'),
  [
    (INF.T, r'attn_mask \(it follows from the config'),
    (np.zeros_like(INF), r'attn_mask \(it follows from the config'),
    (INF[:8, :8], r'attn_mask \[8, 8\], not \[32, 32\]'),
  ],
)
def test_another_mask_is_refused(copy, mask, message):
  mask = np.ascontiguousarray(mask)
  folder = copy('open_clip_vit', lambda w: w.update({'attn_mask': mask}))
  with pytest.raises(FailureError, match=message):
    read_published(folder)


@pytest.mark.parametrize('shape', [(20,), (1, 20), (1, 1, 20)])
@pytest.mark.parametrize('dtype', [np.int64, np.float32])
def test_position_ids_of_any_rank_are_taken(copy, shape, dtype):
  ids = np.arange(20, dtype=dtype).reshape(shape)
  key = 'text_model.embeddings.position_ids'
  folder = copy('hf_clip', lambda weights: weights.update({key: ids}))
  assert read_published(folder).constants[key].shape == shape


@pytest.mark.parametrize('shape', [(), (1,), (1, 1)])
@pytest.mark.parametrize('name', ['open_clip_vit', 'hf_clip', 'hf_siglip'])
def test_a_temperature_of_any_rank_is_one_number(copy, name, shape):
  def reshaped(weights):
    for key in weights.keys() & {'logit_scale', 'logit_bias'}:
      weights[key] = weights[key].reshape(shape)

  params = read_published(copy(name, reshaped)).variables['params']
  golden = load_golden(name).variables['params']
  for key in params.keys() & {'logit_scale', 'logit_bias'}:
    np.testing.assert_array_equal(params[key], golden[key], strict=True)


def test_variables_of_another_model_are_not_written():
  golden = load_golden('hf_clip')
  deeper = dataclasses.replace(
    golden.config, text=dataclasses.replace(golden.config.text, depth=3)
  )
  with pytest.raises(FailureError, match='not those of their config'):
    layouts.write(golden.variables, hugging_face_keys.table(deeper), deeper)


def test_a_table_that_leaves_a_parameter_out_is_a_mistake_of_ours():
  golden = load_golden('hf_clip')
  table = Table('half a table', [Row('params/logit_scale', 'logit_scale')])
  with pytest.raises(KeyError, match='half a table has no row for'):
    layouts.write(golden.variables, table, golden.config)
