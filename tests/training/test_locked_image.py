"""The recipe of LiT, shrunken: a new text tower reads a locked image tower."""

import numpy as np
import pytest
from PIL import Image

from clip_jax.checkpoints.reading import load_variables
from clip_jax.errors import UsageError
from clip_jax.training.loop import train
from clip_jax.training.run import complete_config
from clip_jax.trees import flat
from configs import lit_b16
from tests.tiny_run import CAPTIONS, tiny_params, write_run


def write_colours(folder):
  """A colour for each caption of the tiny model's vocabulary."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i, caption in enumerate(CAPTIONS):
    colour = tuple(rng.integers(0, 256, 3).tolist())
    Image.new('RGB', (20, 20), colour).save(folder / f'{i:02}.png')
    (folder / f'{i:02}.txt').write_text(caption)
  return f'folder:{folder}'


def recipe(folder):
  """The recipe for few pairs, and the tiny model whose image tower it locks."""
  c = lit_b16.get_config()
  c.initialize_from = str(write_run(folder / 'model'))
  c.total_steps = 60
  c.log_every_steps = 20
  c.model.dtype = 'float32'
  c.data.train = write_colours(folder / 'colours')
  c.data.update(batch_size=16, workers=0)
  c.optimizer.update(warmup_steps=4, learning_rate=5e-3)
  return c


@pytest.mark.slow
def test_a_new_text_tower_learns_to_read_a_locked_image_tower(tmp_path, capsys):
  config = recipe(tmp_path)
  assert train(config, tmp_path / 'run').finished
  lines = capsys.readouterr().err.splitlines()
  notes = [line for line in lines if 'begin anew' in line]
  assert notes == [
    'note: text, text_projection, logit_scale begin anew (initialize_anew).'
  ]
  assert any(line.startswith('  trained ') for line in lines)
  losses = [
    float(line.split('loss ')[1].split()[0])
    for line in lines
    if line.startswith('step ')
  ]
  assert losses[-1] < 0.5 * np.log(16)  # that of a model which tells nothing
  params = flat(load_variables(tmp_path / 'run')[0]['params'])
  for name, before in flat(tiny_params()).items():
    if name.startswith('image'):
      np.testing.assert_array_equal(params[name], before, err_msg=name)
  assert params['text/position_embedding'].shape == (16, 32)
  noise = flat(tiny_params())['text/ln_final/scale']  # of that model's
  assert not np.allclose(params['text/ln_final/scale'], noise, atol=0.05)


def test_there_is_nothing_to_lock_without_a_model():
  with pytest.raises(UsageError, match='name that in initialize_from'):
    complete_config(lit_b16.get_config())
