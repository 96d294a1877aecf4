import os
import stat

import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.npz_file import write_npz
from clip_jax.interop.replacing import replacing
from clip_jax.interop.safetensors_file import write_safetensors


def test_a_file_is_replaced_whole(tmp_path):
  path = tmp_path / 'weights'
  path.write_text('old')
  with replacing(path) as temporary:
    temporary.write_text('new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new'
  assert os.listdir(tmp_path) == ['weights']


@pytest.mark.parametrize('mask', [0o022, 0o027, 0o002])
@pytest.mark.parametrize(
  'write',
  [write_npz, lambda path, tensors: write_safetensors(path, tensors, {})],
)
def test_files_are_as_readable_as_the_umask_says(write, mask, tmp_path):
  before = os.umask(mask)
  try:
    write(tmp_path / 'weights', {'a': np.ones(1)})
  finally:
    os.umask(before)
  mode = stat.S_IMODE((tmp_path / 'weights').stat().st_mode)
  assert mode == 0o666 & ~mask


def test_what_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / 'weights'
  path.write_text('old')
  with pytest.raises(KeyError), replacing(path) as temporary:
    temporary.write_text('half')
    raise KeyError
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['weights']


def test_a_place_that_is_none_is_a_wrong_call(tmp_path):
  with pytest.raises(UsageError, match='there is no folder'):
    write_npz(tmp_path / 'absent' / 'a.npz', {'a': np.ones(1)})
  with pytest.raises(UsageError, match='is a folder'):
    write_npz(tmp_path, {'a': np.ones(1)})


@pytest.mark.parametrize(
  'write',
  [write_npz, lambda path, tensors: write_safetensors(path, tensors, {})],
)
def test_a_full_disk_leaves_nothing(write, small_disk):
  with pytest.raises(
    FailureError, match=r'could not be written: .*(?i:no space)'
  ):
    write(small_disk / 'weights', {'a': np.zeros(2**20)})
  assert os.listdir(small_disk) == []
