"""Arrays are read as they were saved, into memory that a device takes."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from clip_jax.checkpoints import manager
from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.checkpoints.reading import restore_numpy
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.description import Description
from clip_jax.training.state import TrainState
from tests.tiny import TINY


@pytest.fixture(params=[4 * 2**20, 1000], ids=['whole', 'in pieces'])
def saved(request, tmp_path, monkeypatch):
  """The parameters of a checkpoint, and the directory they are in."""
  monkeypatch.setattr(manager, '_CHUNK', request.param)
  rng = np.random.default_rng(0)
  params = {
    'blocks': {'kernel': rng.random((3, 40, 50), np.float32)},
    'small': jnp.arange(5, dtype=jnp.bfloat16),
    'scale': np.float32(2.5),
    'count': np.int32([7]),
  }
  state = TrainState(
    step=jnp.int32(1),
    params=jax.tree.map(jnp.asarray, params),
    opt_state={'count': jnp.int32(1)},
  )
  writer = Checkpoints(tmp_path, keep=1)
  writer.save(state, Description(TINY, None, Preprocessing(16)), seed=0)
  writer.close()
  return params, epath.Path(tmp_path) / 'checkpoints' / '1' / 'params'


def test_arrays_are_what_was_saved_and_as_a_device_takes_them(saved):
  params, path = saved
  result = restore_numpy(path)
  assert jax.tree.structure(result) == jax.tree.structure(params)
  for ours, expected in zip(
    jax.tree.leaves(result), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_array_equal(ours, np.asarray(expected), strict=True)
    assert ours.ctypes.data % 64 == 0


@pytest.mark.parametrize('saved', [4 * 2**20], indirect=True)
def test_a_damaged_array_is_not_taken_for_zeros(saved):
  _, path = saved
  files = [file for file in Path(path).rglob('*') if file.is_file()]
  largest = max(files, key=lambda file: file.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  with pytest.raises(ValueError, match='blocks'):
    restore_numpy(path)
