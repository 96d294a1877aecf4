"""The directory of an open_clip training run."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.references import recognise
from clip_jax.interop import open_clip_run
from clip_jax.interop.published_files import Hints
from clip_jax.interop.published_model import read_published
from tests.golden_models import GOLDENS, load_golden
from tests.interop import torch_archives as ta

PARAMS = {
  'accum_freq': 1,
  'batch_size': 64,
  'force_quick_gelu': False,
  'image_interpolation': 'bilinear',
  'image_mean': [0.1, 0.2, 0.3],
  'image_std': None,
  'model': 'ViT-Tiny-16-quickgelu',
  'name': 'run: 1',
  'pretrained': '',
}


def checkpoint(path, epoch, weights):
  contents = {str(i): w.tobytes() for i, w in enumerate(weights.values())}
  state = {
    f'module.{key}': ta.tensor(str(i), array)
    for i, (key, array) in enumerate(weights.items())
  }
  body = {
    'epoch': ta.number(epoch),
    'name': ta.text('run'),
    'state_dict': ta.mapping(state),
  }
  ta.write_archive(path, ta.mapping(body), contents)


@pytest.fixture
def made(tmp_path):
  """Writes a run of the golden ViT; older epochs have other weights."""

  def make(params=None, epochs=(2, 10), more=None, latest=None):
    lines = {**PARAMS, **(params or {})}
    run = tmp_path / 'run'
    (run / 'checkpoints').mkdir(parents=True)
    text = ''.join(f'{name}: {value}\n' for name, value in lines.items())
    (run / 'params.txt').write_text(text)
    weights = load_file(GOLDENS / 'open_clip_vit' / 'model.safetensors')
    weights |= more or {}
    old = {key: np.zeros_like(array) for key, array in weights.items()}
    for epoch in epochs:
      kept = weights if epoch == max(epochs) and latest is None else old
      checkpoint(run / f'checkpoints/epoch_{epoch}.pt', epoch, kept)
    if latest is not None:
      path = run / 'checkpoints/epoch_latest.pt'
      checkpoint(path, latest, weights if latest > max(epochs) else old)
    return run

  return make


@pytest.mark.parametrize(
  'inner', ['', 'checkpoints', 'checkpoints/epoch_10.pt']
)
def test_the_newest_checkpoint_is_taken_and_said(made, inner):
  run = made()
  kind, path = recognise(run / inner)
  assert kind == ('weights' if inner.endswith('.pt') else 'open_clip_run')
  foreign = read_published(path)
  golden = load_golden('open_clip_vit')
  assert foreign.description.model == golden.config
  jax.tree.map(
    np.testing.assert_array_equal, foreign.variables, golden.variables
  )
  said = ' '.join(foreign.notes)
  assert ('epoch_10.pt is taken, the newest of 2' in said) == (
    not inner.endswith('.pt')
  )
  # Its name is not in the table, so that its heads are a guess.
  assert "names the model 'ViT-Tiny-16-quickgelu'" in foreign.guesses[0]
  assert read_published(path, hints=Hints(heads=(2,))).guesses == ()


def test_the_latest_is_taken_where_it_is_later(made):
  run = made(latest=11)
  file, said = open_clip_run.newest(run)
  assert file.name == 'epoch_latest.pt' and 'the newest of 3' in said


def test_a_latest_that_is_older_is_not_taken(made):
  run = made(epochs=(2, 10, 12), latest=3)
  assert open_clip_run.newest(run)[0].name == 'epoch_12.pt'


@pytest.mark.parametrize(
  ('params', 'activation'),
  [
    ({'model': 'ViT-Tiny-16'}, 'gelu'),
    ({'model': 'RN-Tiny-quickgelu'}, 'quick_gelu'),
    ({'model': 'ViT-Tiny-16', 'force_quick_gelu': True}, 'quick_gelu'),
    ({'model': 'ViT-Tiny-16', 'pretrained': 'openai'}, 'quick_gelu'),
  ],
)
def test_how_it_computes_is_as_open_clip_has_it(made, params, activation):
  model = read_published(made(params)).description.model
  assert model.image.activation == model.text.activation == activation


def test_its_preprocessing_is_that_of_its_options(made):
  result = read_published(made()).description.preprocessing
  assert (result.image_size, result.interpolation) == (64, 'bilinear')
  assert result.mean == (0.1, 0.2, 0.3)


def test_a_sigmoid_loss_leaves_its_bias(made):
  run = made(more={'logit_bias': np.float32(-9.5).reshape(1)})
  foreign = read_published(run)
  assert foreign.variables['params']['logit_bias'] == np.float32(-9.5)
  assert foreign.description.model.initial_logit_bias == -10


def test_what_a_run_says_takes_no_hint(made):
  with pytest.raises(
    UsageError, match=r"activation='gelu' is for .*params.txt"
  ):
    read_published(made(), hints=Hints(activation='gelu'))


def test_a_run_without_a_checkpoint(made):
  with pytest.raises(FailureError, match=r'no checkpoints/epoch_N\.pt yet'):
    read_published(made(epochs=()))


def test_other_folders_with_a_params_file_are_none(tmp_path):
  (tmp_path / 'params.txt').write_text('lr: 3\n')
  assert not open_clip_run.is_run(tmp_path)
  (tmp_path / 'params.txt').unlink()
  (tmp_path / 'params.txt').mkdir()
  assert not open_clip_run.is_run(tmp_path)


def test_an_adapter_says_how_it_is_merged(tmp_path):
  fields = {'base_model_name_or_path': 'openai/clip-vit-base-patch32'}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(fields))
  with pytest.raises(UsageError, match=r'merge it first: python -c') as error:
    recognise(tmp_path)
  assert "from_pretrained('openai/clip-vit-base-patch32')" in str(error.value)
  path = tmp_path / 'adapter_model.safetensors'
  from safetensors.numpy import save_file

  save_file({'base_model.model.a.lora_A.weight': np.zeros(1)}, path)
  with pytest.raises(UsageError, match='merge_and_unload'):
    read_published(path)
