import ml_dtypes
import numpy as np
import pytest

from clip_jax.interop import tensor_file
from clip_jax.interop.safetensors_file import write_safetensors
from clip_jax.interop.tensor_file import (
  MappedFile,
  empty_aligned,
  fill,
  read_aligned,
)
from clip_jax.interop.weight_files import open_tensors
from tests.resident import resident_bytes

SIZE = 32 * 2**20


@pytest.fixture
def mapped(tmp_path):
  content = np.arange(SIZE // 8).view(np.uint8)
  content.tofile(tmp_path / 'file')
  return MappedFile(tmp_path / 'file'), content


def test_what_was_read_is_let_go_of_and_comes_back(mapped):
  file, content = mapped
  view = file.bytes[100:200]
  before = resident_bytes()
  assert int(file.bytes.sum()) == int(content.sum())
  assert resident_bytes() > before + SIZE / 2
  file.release()
  assert resident_bytes() < before + SIZE / 2
  np.testing.assert_array_equal(view, content[100:200])


def test_arrays_keep_the_map_and_cannot_be_written(mapped):
  file, content = mapped
  view = file.bytes[-10:]
  del file
  np.testing.assert_array_equal(view, content[-10:])
  with pytest.raises(ValueError, match='read-only'):
    view[0] = 1


def test_an_empty_file_has_no_bytes(tmp_path):
  (tmp_path / 'empty').touch()
  file = MappedFile(tmp_path / 'empty')
  assert file.bytes.shape == (0,)
  file.release()


@pytest.mark.parametrize('dtype', [np.float32, np.int8, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shape', [(), (0, 3), (1,), (5, 7), (2, 3, 4)])
def test_arrays_start_where_a_device_takes_them(shape, dtype):
  for _ in range(8):
    array = empty_aligned(shape, np.dtype(dtype))
    assert array.shape == shape and array.dtype == dtype
    assert not array.size or array.ctypes.data % 64 == 0
    array[...] = 1  # it can be written


SOURCE = np.random.default_rng(0).integers(-99, 99, (3, 5, 7)).astype('f2')


@pytest.mark.parametrize(
  'source',
  [
    SOURCE,
    SOURCE.transpose(2, 0, 1),
    SOURCE.transpose(1, 2, 0)[::-1],
    SOURCE[:, :0],
    np.asarray(SOURCE[1, 2, 3]),
    np.broadcast_to(SOURCE[0, 0], (4, 7)),
  ],
  ids=lambda x: str(np.shape(x)),
)
def test_pieces_are_the_whole_in_another_dtype(source, monkeypatch):
  monkeypatch.setattr(tensor_file, 'PIECE', 50)
  place = empty_aligned(source.shape, np.dtype(np.float32))
  fill(place, source, lambda: None)
  np.testing.assert_array_equal(place, source.astype(np.float32), strict=True)


def test_a_piece_is_one_stretch_of_the_file(monkeypatch):
  monkeypatch.setattr(tensor_file, 'PIECE', 16)
  source = np.arange(12, dtype=np.float32).reshape(3, 4).T
  place = np.zeros((4, 3), np.float32)
  seen = []
  fill(place, source, lambda: seen.append(np.count_nonzero(place + 1 > 1)))
  assert seen == [3, 7, 11]  # all of a row of the file's, then the next


def test_a_tensor_is_read_into_memory_of_its_own(tmp_path):
  path = tmp_path / 'a.safetensors'
  write_safetensors(path, {'a': SOURCE}, {})
  with open_tensors(path) as tensors:
    same = read_aligned(tensors, 'a')
    wide = read_aligned(tensors, 'a', np.dtype(np.float32))
  np.testing.assert_array_equal(same, SOURCE, strict=True)
  np.testing.assert_array_equal(wide, SOURCE.astype(np.float32), strict=True)
