import numpy as np
import pytest

from clip_jax.interop.mapped_file import MappedFile
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
