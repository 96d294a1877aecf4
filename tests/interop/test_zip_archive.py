import struct
import zipfile

import numpy as np
import pytest

from clip_jax.errors import FailureError
from clip_jax.interop.zip_archive import ZipArchive

MEMBERS = {'a/one': b'1' * 100, 'a/two': bytes(range(256)), 'a/none': b''}


@pytest.fixture(params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def path(request, tmp_path):
  path = tmp_path / 'weights.zip'
  with zipfile.ZipFile(path, 'w', request.param) as archive:
    archive.mkdir('a')
    for name, content in MEMBERS.items():
      archive.writestr(name, content)
  return path


def changed(path, offset, content):
  """Overwrites bytes at an offset."""
  with open(path, 'r+b') as file:
    file.seek(offset)
    file.write(content)


def central(path, name):
  """Where a member's entry in the archive's directory begins."""
  content = path.read_bytes()
  return content.rindex(name.encode()) - 46


def test_members_read_whole_and_in_part(path):
  archive = ZipArchive(path)
  assert list(archive.members) == list(MEMBERS)
  for name, content in MEMBERS.items():
    assert archive.read(name).tobytes() == content
    assert archive.prefix(name, 7) == content[:7]
    assert archive.members[name].size == len(content)


def test_only_a_stored_member_is_a_view_of_the_map(path):
  archive = ZipArchive(path)
  mapped = not archive.read('a/two').flags.owndata
  assert mapped == (not archive.members['a/two'].compressed)


def test_a_name_that_occurs_twice_is_refused(path):
  with (
    pytest.warns(UserWarning, match='Duplicate'),
    zipfile.ZipFile(path, 'a') as archive,
  ):
    archive.writestr('a/one', b'other')
  with pytest.raises(FailureError, match="has 'a/one' twice"):
    ZipArchive(path)


def test_an_encrypted_member_is_refused(path):
  changed(path, central(path, 'a/two') + 8, b'\x01\x00')
  with pytest.raises(FailureError, match="'a/two' is encrypted"):
    ZipArchive(path)


def test_an_unusual_compression_is_refused(tmp_path):
  path = tmp_path / 'weights.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_LZMA) as archive:
    archive.writestr('one', b'1')
  with pytest.raises(FailureError, match="'one' is compressed in an unusual"):
    ZipArchive(path)


@pytest.mark.parametrize('offset', [0, 1, 40, 2**31])
def test_a_lying_offset_is_refused(path, offset):
  changed(path, central(path, 'a/two') + 42, struct.pack('<I', offset))
  with pytest.raises(FailureError, match=r"'a/two' is not where|overlaps"):
    ZipArchive(path)


def test_two_entries_for_the_same_bytes_are_refused(path):
  """The "quilt" bomb: many names, one body."""
  content = path.read_bytes()
  start = content.index(b'a/one') - 30
  # The second entry gets the first one's name in the local header's place.
  changed(path, central(path, 'a/two') + 42, struct.pack('<I', start))
  changed(path, central(path, 'a/two') + 46, b'a/one')
  with pytest.raises(FailureError, match=r'overlaps another|twice'):
    ZipArchive(path)


@pytest.mark.parametrize('size', [257, 2**31])
def test_a_member_that_reaches_into_the_next_is_refused(path, size):
  entry = central(path, 'a/two')
  changed(path, entry + 20, struct.pack('<II', size + 200, size + 200))
  with pytest.raises(FailureError, match="'a/two' overlaps another"):
    ZipArchive(path)


def test_a_stored_member_of_two_sizes_is_refused(tmp_path):
  path = tmp_path / 'weights.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('one', b'1' * 100)
  changed(path, central(path, 'one') + 24, struct.pack('<I', 101))
  with pytest.raises(FailureError, match="'one' overlaps another, or lies"):
    ZipArchive(path)


def deflated(tmp_path, content):
  path = tmp_path / 'weights.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('one', content)
  return path


@pytest.mark.parametrize('value', range(10))
def test_what_shrinks_a_thousandfold_comes_back_whole(tmp_path, value):
  """Its last bytes wait inside the inflater when all input is taken."""
  content = np.full(5 * 2**18 + value, value, np.int32).tobytes()
  assert (
    ZipArchive(deflated(tmp_path, content)).read('one').tobytes() == content
  )


@pytest.mark.parametrize('size', [1, 99_999, 100_001, 1_000_000])
def test_a_member_that_grows_to_another_size_is_refused(tmp_path, size):
  path = deflated(tmp_path, np.arange(25_000, dtype=np.int32).tobytes())
  changed(path, central(path, 'one') + 24, struct.pack('<I', size))
  with pytest.raises(FailureError, match="bytes of 'one' are not what was"):
    ZipArchive(path).read('one')


def test_a_bomb_is_refused_before_it_grows(tmp_path):
  path = deflated(tmp_path, bytes(65 * 2**20))
  archive = ZipArchive(path)
  with pytest.raises(FailureError, match=r'grow from .* to 68,157,440 bytes'):
    archive.read('one')
  assert archive.prefix('one', 10) == bytes(10)


def test_changed_bytes_are_noticed(path):
  place = path.read_bytes().index(b'a/two') + len('a/two') + 9
  changed(path, place, b'\xff')
  archive = ZipArchive(path)
  with pytest.raises(FailureError, match="bytes of 'a/two' are not what was"):
    archive.read('a/two')


def test_a_checksum_can_be_left_alone(path):
  """As `torch.serialization.set_crc32_options(False)` writes them."""
  changed(path, central(path, 'a/two') + 16, bytes(4))
  archive = ZipArchive(path)
  with pytest.raises(FailureError):
    archive.read('a/two')
  assert archive.read('a/two', check=False).tobytes() == MEMBERS['a/two']
