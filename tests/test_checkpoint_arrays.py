import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import checkpoints
from clip_jax.checkpoint_arrays import HostCopy, restore_numpy
from clip_jax.checkpoints import Checkpoints
from clip_jax.data.images import Preprocessing
from clip_jax.models.description import Description
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.state import TrainState
from tests.tiny import TINY


@pytest.fixture(params=[4 * 2**20, 1000], ids=['whole', 'in pieces'])
def saved(request, tmp_path, monkeypatch):
  """The parameters of a checkpoint, and the directory they are in."""
  monkeypatch.setattr(checkpoints, '_CHUNK', request.param)
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
  found = restore_numpy(path)
  assert jax.tree.structure(found) == jax.tree.structure(params)
  for ours, expected in zip(
    jax.tree.leaves(found), jax.tree.leaves(params), strict=True
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


def tree(value):
  sharding = NamedSharding(make_mesh(4, 2, 1), P('fsdp'))
  return {
    'w': jax.device_put(jnp.full((8, 3), value, jnp.float32), sharding),
    'count': jnp.int32(value),
  }


def pointers(arrays):
  return [
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(arrays)
    for shard in leaf.addressable_shards
  ]


def test_a_copy_is_equal_elsewhere_and_as_sharded():
  original = tree(1)
  copy = HostCopy().of(original)
  jax.tree.map(np.testing.assert_array_equal, copy, original)
  assert copy['w'].sharding == original['w'].sharding
  assert not set(pointers(copy)) & set(pointers(original))


def test_the_next_copy_takes_the_same_memory():
  copies = HostCopy()
  first = pointers(copies.of(tree(1)))
  second = copies.of(tree(2))
  assert pointers(second) == first
  np.testing.assert_array_equal(second['w'], np.full((8, 3), 2.0))


def test_a_copy_that_is_still_read_is_left_alone():
  copies = HostCopy()
  shard = copies.of(tree(1))['w'].addressable_shards[0].data
  held = np.asarray(shard)
  copies.of(tree(2))
  np.testing.assert_array_equal(held, np.full_like(held, 1.0))
