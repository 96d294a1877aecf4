"""Runs that stop and go on end with the bits of runs that do not stop.

Other rules than Adam, with averages, and with a tower that is partly frozen.
tests/training/test_loop.py kills real processes.
"""

import shutil

import jax
import numpy as np
import pytest
from etils import epath

from clip_jax.checkpoints.reading import restore_numpy
from clip_jax.training.loop import train
from clip_jax.training.writers import Outputs
from clip_jax.trees import flat
from tests.tiny import tiny_config, write_pairs
from tests.training.logged import losses

LAST_FREE = (
  ('image/transformer/blocks[-1:]', 0.5),
  ('image', 0.0),
  ('*', 1.0),
)


def config_of(name, data):
  config = tiny_config()
  config.log_every_steps = 1
  config.data.train = data
  config.data.augment.update(rotate=10.0, noise=5.0)
  config.optimizer.update(
    name=name,
    learning_rate=1e-3,
    groups=LAST_FREE,
    layer_decay=0.9,
    ema_decay=0.8,
  )
  return config


@pytest.fixture(scope='module', params=['adamw', 'lion', 'muon'])
def run(request, tmp_path_factory):
  """A run of twelve steps with checkpoints at 4, 8 and 12, and its config."""
  folder = tmp_path_factory.mktemp(request.param)
  config = config_of(request.param, write_pairs(folder / 'pairs'))
  train(config, folder / 'run', Outputs())
  return folder / 'run', config


def saved(workdir, step, item):
  folder = workdir / 'checkpoints' / str(step) / item
  return restore_numpy(epath.Path(folder))


@pytest.mark.slow
def test_a_run_that_goes_on_from_step_4_ends_with_the_same_bits(run, tmp_path):
  whole, config = run
  again = tmp_path / 'run'
  shutil.copytree(whole, again)
  for step in (8, 12):
    shutil.rmtree(again / 'checkpoints' / str(step))
  assert train(config, again, Outputs()).step == 12
  for item in ('params', 'ema', 'opt_state'):
    ours, theirs = saved(again, 12, item), saved(whole, 12, item)
    assert flat(ours)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert losses(again) == losses(whole)
  assert len(losses(whole)) == 12


@pytest.mark.slow
def test_what_is_frozen_keeps_its_bits_and_has_no_moments(run):
  whole, _ = run
  before, after = (flat(saved(whole, step, 'params')) for step in (4, 12))
  averages = flat(saved(whole, 12, 'ema'))
  for name, leaf in after.items():
    old, is_image = before[name], name.startswith('image/')
    is_stack = '/blocks/' in name
    if is_image:
      assert (name in averages) == is_stack
    if is_image and is_stack:  # the first block is frozen
      np.testing.assert_array_equal(leaf[0], old[0], err_msg=name)
      leaf, old = leaf[1], old[1]
    assert np.array_equal(leaf, old) == (is_image and not is_stack), name
  moments = {
    name: leaf
    for name, leaf in flat(saved(whole, 12, 'opt_state')).items()
    if '/image/' in name and leaf is not None
  }
  assert moments
  for name, leaf in moments.items():
    assert '/blocks/' in name
    assert len(leaf) == 1, name
