import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.npz_file import write_npz
from clip_jax.interop.safetensors_file import write_safetensors
from clip_jax.interop.weight_files import TensorInfo, open_tensors
from tests.interop.torch_archives import write_state_dict

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
SCALARS = {'input_resolution': 64, 'context_length': 32, 'vocab_size': 600}
ARRAYS = {
  'weight': np.arange(12, dtype=np.float32).reshape(3, 4),
  'bias': np.ones(3, np.float16),
}
# What a damaged file of each container is reported as.
DAMAGE = UsageError, FailureError


def write(path, container):
  """A small file of one container."""
  if container == 'safetensors':
    write_safetensors(path, ARRAYS, {'format': 'pt'})
  elif container == 'npz':
    write_npz(path, ARRAYS)
  else:
    write_state_dict(path, ARRAYS)
  return path


CONTAINERS = 'safetensors', 'npz', 'torch'


@pytest.mark.parametrize('container', CONTAINERS)
def test_each_container_reads_the_same_whatever_its_name(container, tmp_path):
  path = write(tmp_path / 'weights.txt', container)

  with open_tensors(str(path)) as tensors:
    assert tensors.format == container
    assert set(tensors.infos) == set(ARRAYS)
    for name, array in ARRAYS.items():
      assert tensors.infos[name] == TensorInfo(array.shape, array.dtype)
      result = tensors.read(name)
      np.testing.assert_array_equal(result, array, strict=True)
      assert result.flags.c_contiguous and result.flags.aligned


@pytest.mark.parametrize('container', CONTAINERS)
def test_an_array_outlives_its_file_and_the_file_lets_go(container, tmp_path):
  path = write(tmp_path / 'weights', container)
  with open_tensors(path) as tensors:
    weight = tensors.read('weight')
    with pytest.raises(KeyError, match='other'):
      tensors.read('other')
  path.unlink()
  np.testing.assert_array_equal(weight, ARRAYS['weight'])
  with pytest.raises(ValueError, match='was closed'):
    tensors.read('weight')


@pytest.mark.parametrize('name', ['openai_state_dict', 'openai_torchscript'])
def test_openai_archives_are_the_golden_model_in_float16(name):
  golden = open_tensors(GOLDENS / 'open_clip_vit' / 'model.safetensors')
  with open_tensors(GOLDENS / 'archives' / f'{name}.pt') as tensors:
    assert set(tensors.infos) == set(golden.infos) | set(SCALARS)
    for scalar, value in SCALARS.items():
      assert tensors.read(scalar) == value
      assert tensors.infos[scalar] == TensorInfo((), np.dtype(np.int64))
    for key in golden.infos:
      result, expected = tensors.read(key), golden.read(key)
      assert result.dtype == (np.float16 if expected.ndim > 1 else np.float32)
      np.testing.assert_array_equal(
        result, expected.astype(result.dtype), strict=True
      )


def test_an_open_clip_checkpoint_is_the_golden_model_without_its_prefix():
  golden = open_tensors(GOLDENS / 'open_clip_vit' / 'model.safetensors')
  with open_tensors(GOLDENS / 'archives' / 'open_clip_checkpoint.pt') as result:
    assert result.metadata == {'epoch': 3, 'name': 'run'}
    assert result.infos == golden.infos
    for key in golden.infos:
      np.testing.assert_array_equal(result.read(key), golden.read(key))


def test_a_directory_stands_for_the_safetensors_file_in_it(tmp_path):
  write(tmp_path / 'model.safetensors', 'safetensors')
  (tmp_path / 'config.json').write_text('{}')
  assert set(open_tensors(tmp_path).infos) == set(ARRAYS)

  write(tmp_path / 'other.safetensors', 'safetensors')
  with pytest.raises(UsageError, match=r'holds 2 \*\.safetensors .*name one'):
    open_tensors(tmp_path)


def test_a_directory_with_an_index_stands_for_its_shards(tmp_path):
  write(tmp_path / 'a.safetensors', 'safetensors')
  write(tmp_path / 'b.safetensors', 'safetensors')
  index = {'weight_map': {'weight': 'a.safetensors', 'bias': 'b.safetensors'}}
  path = tmp_path / 'model.safetensors.index.json'
  path.write_text(json.dumps(index, indent=2))
  assert set(open_tensors(tmp_path).infos) == set(ARRAYS)
  assert open_tensors(path).path == path


POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n'
LEGACY = pickle.dumps(119547037146038801333356, 2) + pickle.dumps(1001, 2)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'it is empty'),
    (POINTER, 'git-lfs pointer.*git lfs pull'),
    (b'\n<!DOCTYPE html><html></html>', 'a web page'),
    (b'<html lang="en">404</html>', 'a web page'),
    (LEGACY, r'torch before 1\.6.*torch\.save it again'),
    (pickle.dumps({'a': 1}), 'a bare pickle'),
    (b'\x00' * 4, 'none of their signatures'),
    (b'\x89HDF\r\n\x1a\n' + bytes(100), 'none of their signatures'),
    (b'weights!', 'none of their signatures'),
  ],
)
def test_other_files_are_refused_with_the_reason(content, message, tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(content)
  with pytest.raises(UsageError, match=message) as caught:
    open_tensors(path)
  assert str(caught.value).startswith(f'{path} is not a weight file')
  assert '\n' not in str(caught.value)


def test_a_zip_of_other_things_is_refused(tmp_path):
  path = tmp_path / 'photos.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a.jpg', b'')
  with pytest.raises(UsageError, match='a zip archive of other things'):
    open_tensors(path)


def test_what_is_not_there_or_a_bare_directory_is_a_wrong_call(tmp_path):
  with pytest.raises(UsageError, match='no such file'):
    open_tensors(tmp_path / 'absent.pt')
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(UsageError, match='is a device or a pipe'):
    open_tensors(tmp_path / 'pipe')  # and does not wait for a writer
  with pytest.raises(UsageError, match=r'holds no weights'):
    open_tensors(tmp_path)


@pytest.mark.parametrize('container', CONTAINERS)
def test_a_file_cut_off_anywhere_is_refused(container, tmp_path):
  whole = write(tmp_path / 'whole', container).read_bytes()
  path = tmp_path / 'short'
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    with pytest.raises(DAMAGE, match=r'was it cut off|is not a weight file'):
      open_tensors(path)


@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255))))
@pytest.mark.parametrize('container', CONTAINERS)
def test_changed_bytes_raise_nothing_but_our_errors(
  container, flips, tmp_path_factory
):
  folder = tmp_path_factory.mktemp('flips')
  content = bytearray(write(folder / 'weights', container).read_bytes())
  for where, change in flips:
    content[int(where * (len(content) - 1))] ^= change
  (folder / 'weights').write_bytes(content)
  try:
    with open_tensors(folder / 'weights') as tensors:
      for name, info in tensors.infos.items():
        assert tensors.read(name).shape == info.shape
  except DAMAGE as error:
    assert '\n' not in str(error)


@given(content=st.binary(max_size=200), magic=st.sampled_from([b'', b'PK\3\4']))
def test_random_bytes_raise_nothing_but_our_errors(
  content, magic, tmp_path_factory
):
  path = tmp_path_factory.mktemp('random') / 'weights'
  path.write_bytes(magic + content)
  with pytest.raises(DAMAGE):
    open_tensors(path)


STREAM = """
import sys
from clip_jax.interop.weight_files import open_tensors

def anonymous():
  with open('/proc/self/status') as status:
    return next(int(l.split()[1]) for l in status if l.startswith('RssAnon'))

before, peak = anonymous(), 0
with open_tensors(sys.argv[1]) as tensors:
  for name in tensors.infos:
    total = float(tensors.read(name).max())  # touches every page
    peak = max(peak, anonymous() - before)
    array = tensors.read(name)
    array.max()
    peak = max(peak, anonymous() - before)
    del array
  print(peak / 1024, len(tensors.infos))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('container', [*CONTAINERS, 'compressed npz'])
def test_reading_all_tensors_takes_the_memory_of_one(container, tmp_path):
  """200 MiB, of which a tenth may be in memory of our own at a time."""
  megabytes, count = 20, 10
  arrays = {
    f'layer.{index}': np.full((megabytes, 2**18), index, np.float32)
    for index in range(count)
  }
  path = tmp_path / 'large'
  if container == 'safetensors':
    write_safetensors(path, arrays, {})
  elif container == 'npz':
    write_npz(path, arrays)
  elif container == 'compressed npz':
    with open(path, 'wb') as file:
      np.savez_compressed(file, **arrays)
  else:
    write_state_dict(path, arrays)
  del arrays
  run = subprocess.run(
    [sys.executable, '-c', STREAM, str(path)],
    check=True,
    capture_output=True,
    text=True,
  )
  peak, read = run.stdout.split()
  assert int(read) == count
  assert float(peak) < 1.5 * megabytes
