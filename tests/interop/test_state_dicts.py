"""Weights in the wrappers that people save them in, in every container."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.npz_file import write_npz
from clip_jax.interop.published_files import Hints
from clip_jax.interop.published_model import read_published
from clip_jax.interop.state_dicts import select
from tests.golden_models import GOLDENS, load_golden
from tests.interop import torch_archives as ta

PREFIXES = [
  'module.',
  '_orig_mod.',
  'model.',
  'module._orig_mod.',
  '_orig_mod.module.model.',
  'model.module.module._orig_mod.model.',
  'clip.net.',
]
ROOTS = ('open_clip_vit', 'open_clip_resnet', 'hf_clip', 'hf_siglip')


def weights_of(name):
  return load_file(GOLDENS / name / 'model.safetensors')


def prefixed(weights, prefix):
  return {f'{prefix}{key}': array for key, array in weights.items()}


def same(result, golden):
  jax.tree.map(np.testing.assert_array_equal, result, golden.variables)


def shards(path, weights):
  """Writes two safetensors files and their index, `path`."""
  weight_map = {}
  for i, keys in enumerate((list(weights)[::2], list(weights)[1::2])):
    name = f'part-{i}.safetensors'
    save_file({key: weights[key] for key in keys}, path.parent / name)
    weight_map |= dict.fromkeys(keys, name)
  path.write_text(json.dumps({'weight_map': weight_map}))


CONTAINERS = {
  'model.safetensors': lambda path, weights: save_file(weights, path),
  'pytorch_model.bin': ta.write_state_dict,
  'model.safetensors.index.json': shards,
}


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('prefix', PREFIXES)
def test_every_prefix_in_every_container(tmp_path, prefix, container):
  name = 'open_clip_vit'
  shutil.copy(GOLDENS / name / 'config.json', tmp_path)
  weights = prefixed(weights_of(name), prefix)
  CONTAINERS[container](tmp_path / container, weights)
  foreign = read_published(tmp_path)
  same(foreign.variables, load_golden(name))
  assert foreign.notes == ()


@pytest.mark.parametrize('name', ROOTS)
def test_every_layout_behind_prefixes(tmp_path, name):
  shutil.copy(GOLDENS / name / 'config.json', tmp_path)
  weights = prefixed(weights_of(name), 'model._orig_mod.module.')
  save_file(weights, tmp_path / 'model.safetensors')
  same(read_published(tmp_path).variables, load_golden(name))


def test_an_npz_behind_a_prefix(tmp_path):
  shutil.copy(GOLDENS / 'open_clip_vit' / 'config.json', tmp_path)
  weights = prefixed(weights_of('open_clip_vit'), 'module.model.')
  write_npz(tmp_path / 'w.npz', weights)
  foreign = read_published(tmp_path / 'w.npz')
  same(foreign.variables, load_golden('open_clip_vit'))


def test_wrappers_in_the_middle_of_a_name(tmp_path):
  """What FSDP and torch.compile of one tower leave."""
  shutil.copy(GOLDENS / 'open_clip_vit' / 'config.json', tmp_path)
  weights = {
    key.replace('visual.', 'visual._orig_mod.').replace(
      'resblocks.0.', 'resblocks.0._checkpoint_wrapped_module.'
    ): array
    for key, array in weights_of('open_clip_vit').items()
  }
  save_file(weights, tmp_path / 'model.safetensors')
  same(read_published(tmp_path).variables, load_golden('open_clip_vit'))


def saved(path: Path, places: dict[str, dict[str, np.ndarray]], **scalars):
  """Writes a dict of state dicts, as a training run's `torch.save`."""
  body, contents = {}, {}
  for place, arrays in places.items():
    tensors = {}
    for key, array in arrays.items():
      number = str(len(contents))
      contents[number] = array.tobytes()
      tensors[key] = ta.tensor(number, array)
    if place:
      body[place] = ta.mapping(tensors)
    else:
      body |= tensors
  body |= {name: ta.number(value) for name, value in scalars.items()}
  return ta.write_archive(path, ta.mapping(body), contents)


QUICK = Hints(activation='quick_gelu')
MOMENTS = {'visual.positional_embedding': np.zeros(3, np.float32)}


@pytest.mark.parametrize(
  'place', ['state_dict', 'model_state_dict', 'module', 'model', 'clip', 'net']
)
@pytest.mark.parametrize('prefix', ['', 'module.', 'model._orig_mod.'])
def test_every_nesting(tmp_path, place, prefix):
  weights = weights_of('open_clip_vit')
  path = saved(
    tmp_path / 'w.pt',
    {place: prefixed(weights, prefix), 'optimizer_exp_avg': MOMENTS},
    epoch=3,
  )
  foreign = read_published(path, hints=QUICK)
  same(foreign.variables, load_golden('open_clip_vit'))
  assert foreign.notes == ()


def test_a_nesting_in_a_nesting(tmp_path):
  weights, contents = {}, {}
  for key, array in weights_of('open_clip_vit').items():
    contents[str(len(contents))] = array.tobytes()
    weights[f'module.{key}'] = ta.tensor(str(len(contents) - 1), array)
  inner = ta.mapping({'model': ta.mapping(weights)})
  body = ta.mapping({'checkpoint': inner, 'step': ta.number(1)})
  path = ta.write_archive(tmp_path / 'w.pt', body, contents)
  same(
    read_published(path, hints=QUICK).variables,
    load_golden('open_clip_vit'),
  )


def doubled(weights):
  return {
    key: np.asarray(array * 2) if array.dtype.kind == 'f' else array
    for key, array in weights.items()
  }


@pytest.mark.parametrize(
  ('raw', 'average'),
  [
    ('state_dict', 'state_dict_ema'),
    ('model_state_dict', 'ema_state_dict'),
    ('model', 'model_ema'),
    ('module', 'ema'),
    ('model', 'swa_model'),
  ],
)
def test_of_weights_and_their_average_one_is_taken_and_named(
  tmp_path, raw, average
):
  weights = weights_of('open_clip_vit')
  averaged = {'n_averaged': np.asarray(7), **prefixed(weights, 'module.')}
  path = saved(tmp_path / 'w.pt', {raw: doubled(weights), average: averaged})
  foreign = read_published(path, hints=QUICK)
  same(foreign.variables, load_golden('open_clip_vit'))
  [note] = foreign.notes
  # A place that is called as a wrapper is the top.
  other = {'module': 'raw'}.get(raw, raw)
  assert f'average (EMA), {average!r}: the average is taken' in note
  assert f'weights={other} takes the others' in note
  hints = Hints(activation='quick_gelu', weights=other)
  taken = read_published(path, hints=hints)
  assert taken.notes == ()
  np.testing.assert_array_equal(
    taken.variables['params']['image_projection']['kernel'],
    2 * foreign.variables['params']['image_projection']['kernel'],
  )


def test_torchs_averaged_model_is_told_from_its_counter(tmp_path):
  weights = prefixed(weights_of('open_clip_vit'), 'module.')
  path = ta.write_state_dict(
    tmp_path / 'w.pt', {'n_averaged': np.asarray(7), **weights}
  )
  foreign = read_published(path, hints=QUICK)
  same(foreign.variables, load_golden('open_clip_vit'))
  assert 'averaged weights (EMA) and no others' in foreign.notes[0]


def test_an_average_beside_the_weights_in_one_flat_file(tmp_path):
  shutil.copy(GOLDENS / 'hf_clip' / 'config.json', tmp_path)
  weights = weights_of('hf_clip')
  flat = {**doubled(weights), **prefixed(weights, 'ema_model.')}
  save_file(flat, tmp_path / 'model.safetensors')
  foreign = read_published(tmp_path)
  same(foreign.variables, load_golden('hf_clip'))
  assert "their average (EMA), 'ema_model'" in foreign.notes[0]
  raw = read_published(tmp_path, hints=Hints(weights='raw'))
  assert raw.variables['params']['logit_scale'] == pytest.approx(
    2 * foreign.variables['params']['logit_scale']
  )


def test_other_tensors_are_left_out_and_counted(tmp_path):
  shutil.copy(GOLDENS / 'hf_clip' / 'config.json', tmp_path)
  others = {f'decoder.{i}.weight': np.zeros(1) for i in range(3)}
  weights = prefixed(weights_of('hf_clip'), 'model.vision_tower.')
  save_file({**weights, **others}, tmp_path / 'model.safetensors')
  foreign = read_published(tmp_path)
  same(foreign.variables, load_golden('hf_clip'))
  assert '3 tensors that are not of the CLIP' in foreign.notes[0]
  assert 'decoder.0.weight' in foreign.notes[0]


def test_inside_of_the_model_nothing_is_left_out(tmp_path):
  shutil.copy(GOLDENS / 'hf_clip' / 'config.json', tmp_path)
  weights = {**weights_of('hf_clip'), 'sparkle': np.zeros(1)}
  save_file(prefixed(weights, 'model.'), tmp_path / 'model.safetensors')
  with pytest.raises(FailureError, match='not expected: sparkle'):
    read_published(tmp_path)


def test_of_two_models_neither_is_guessed(tmp_path):
  names = ['teacher.visual.positional_embedding',
           'student.visual.positional_embedding']  # fmt: skip
  with pytest.raises(UsageError, match="models: 'student', 'teacher'; say wh"):
    select(names, 'w.pt')
  assert select(names, 'w.pt', 'teacher').names == {
    'visual.positional_embedding': names[0]
  }
  with pytest.raises(UsageError, match="no weights called 'ema': it has 'stu"):
    select(names, 'w.pt', 'ema')


def test_two_names_that_would_become_one_stay_apart():
  names = ['module.visual.positional_embedding', 'visual.positional_embedding']
  assert select(names, 'w', 'module').names == {
    'visual.positional_embedding': names[0]
  }
