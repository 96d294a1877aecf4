"""What no model can be read from: one line, and exit code 1 or 2."""

import json
import os
import pickle
import shutil
import zipfile

import pytest

from tests.golden_models import GOLDENS
from tests.tiny_run import write_run

ARCHIVE = GOLDENS / 'archives' / 'open_clip_checkpoint.pt'


def copied(folder, name):
  shutil.copytree(GOLDENS / name, folder / 'm')
  return folder / 'm'


def cut(path):
  os.truncate(path, path.stat().st_size // 2)


def a_cut_safetensors_file(folder):
  model = copied(folder, 'hf_clip')
  cut(model / 'model.safetensors')
  return model


def a_header_that_lies(folder):
  model = copied(folder, 'open_clip_vit')
  file = model / 'model.safetensors'
  file.write_bytes(b'\xff' * 8 + file.read_bytes()[8:])
  return model


def a_cut_archive(folder):
  shutil.copy(ARCHIVE, folder / 'm.pt')
  cut(folder / 'm.pt')
  return folder / 'm.pt'


class _Evil:
  def __reduce__(self):
    return os.mkdir, ('/tmp/clip_jax_was_here',)


def a_pickle_that_calls_something(folder):
  with zipfile.ZipFile(folder / 'm.pt', 'w') as archive:
    archive.writestr('m/data.pkl', pickle.dumps(_Evil()))
    archive.writestr('m/version', '3\n')
  return folder / 'm.pt'


def a_bare_pickle(folder):
  (folder / 'm.bin').write_bytes(pickle.dumps(_Evil()))
  return folder / 'm.bin'


def an_npz_of_other_things(folder):
  with zipfile.ZipFile(folder / 'm.npz', 'w') as archive:
    archive.writestr('words.npy', b'not an array')
  return folder / 'm.npz'


def an_empty_file(folder):
  (folder / 'm.safetensors').touch()
  return folder / 'm.safetensors'


def an_image(folder):
  shutil.copy(next((GOLDENS / 'preprocess' / 'images').iterdir()), folder / 'm')
  return folder / 'm'


def a_config_that_is_no_json(folder):
  model = copied(folder, 'hf_clip')
  (model / 'config.json').write_text('{"model_type": ')
  return model


def a_config_of_another_shape(folder):
  model = copied(folder, 'hf_siglip')
  config = json.loads((model / 'config.json').read_text())
  config['vision_config']['hidden_size'] = 96
  (model / 'config.json').write_text(json.dumps(config))
  return model


def a_config_without_weights(folder):
  model = copied(folder, 'open_clip_vit')
  (model / 'model.safetensors').unlink()
  return model


def a_damaged_preprocessor(folder):
  model = copied(folder, 'hf_siglip')
  (model / 'preprocessor_config.json').write_text('[1]')
  return model


def a_damaged_tokenizer(folder):
  model = copied(folder, 'hf_clip')
  (model / 'tokenizer.json').write_text('{"model": {"type": "Sparkle"}}')
  return model


def a_damaged_checkpoint(folder):
  run = write_run(folder / 'run')
  for file in (run / 'checkpoints' / '7' / 'params').rglob('*'):
    if file.is_file():
      cut(file)
  return run


def a_run_that_has_saved_nothing(folder):
  (folder / 'run' / 'checkpoints').mkdir(parents=True)
  return folder / 'run'


def an_export_without_weights(folder):
  (folder / 'm').mkdir()
  (folder / 'm' / 'manifest.json').write_text('{"format": "sparkle"}')
  return folder / 'm'


DAMAGE = [
  a_cut_safetensors_file,
  a_header_that_lies,
  a_cut_archive,
  a_pickle_that_calls_something,
  a_bare_pickle,
  an_npz_of_other_things,
  an_empty_file,
  an_image,
  a_config_that_is_no_json,
  a_config_of_another_shape,
  a_config_without_weights,
  a_damaged_preprocessor,
  a_damaged_tokenizer,
  a_damaged_checkpoint,
  a_run_that_has_saved_nothing,
  an_export_without_weights,
]


@pytest.mark.parametrize('damage', DAMAGE, ids=lambda made: made.__name__)
def test_a_model_that_cannot_be_read_is_one_line(clip_jax, tmp_path, damage):
  reference = damage(tmp_path)
  result = clip_jax('info', f'--model={reference}')
  assert result.code in (1, 2), result
  assert result.out == ''
  *warnings, error = result.err.splitlines()
  assert all(line.startswith('warning: ') for line in warnings)
  assert error.startswith('error: ')
  assert str(reference) in error
  assert 'worth reporting' not in error
  assert not os.path.exists('/tmp/clip_jax_was_here')
