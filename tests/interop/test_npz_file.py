import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.npz_file import write_npz
from clip_jax.interop.tensor_file import DTYPES
from clip_jax.interop.weight_files import open_tensors

ONES = np.ones((2, 3), np.float32)


def npy(array, **options):
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, array, **options)
  return buffer.getvalue()


@pytest.fixture
def open_file(tmp_path):
  """Opens an archive of one member with this content."""

  def open_file(content):
    path = tmp_path / 'weights.npz'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('params/a.npy', content)
    return open_tensors(path)

  return open_file


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_what_numpy_saves_reads_back(save, tmp_path):
  arrays = {
    'params/img/kernel': np.arange(6.0).reshape(2, 3),
    'params/t': np.array(3, np.int64),
    'empty': np.zeros((0, 3), np.float16),
    'big': np.arange(4, dtype='>f4'),
    'fortran': np.asfortranarray(np.arange(6).reshape(2, 3)),
    'flags': np.array([True, False]),
    'large': np.random.default_rng(0).normal(size=(200, 300)),
  }
  save(tmp_path / 'weights.npz', **arrays)
  with open_tensors(tmp_path / 'weights.npz') as tensors:
    assert tensors.format == 'npz'
    assert list(tensors.infos) == list(arrays)
    for name, array in arrays.items():
      native = array.astype(array.dtype.newbyteorder('='))
      np.testing.assert_array_equal(tensors.read(name), native, strict=True)
      assert tensors.read(name).flags.c_contiguous


@pytest.mark.parametrize('dtype', sorted(DTYPES, key=str), ids=str)
def test_what_is_written_reads_back_here_and_in_numpy(dtype, tmp_path):
  arrays = {'file': np.array([[0, 1], [3, 2]]).astype(dtype)}
  path = tmp_path / 'weights.npz'
  if dtype.name.startswith('float8'):
    with pytest.raises(UsageError, match=rf'cannot hold .*{dtype.name}'):
      write_npz(path, arrays)
    return
  write_npz(path, arrays)
  np.testing.assert_array_equal(
    open_tensors(path).read('file'), arrays['file'], strict=True
  )
  assert np.load(path)['file'].tobytes() == arrays['file'].tobytes()


def test_raw_pairs_of_bytes_are_bfloat16(open_file):
  raw = np.array([1, -2.5], ml_dtypes.bfloat16).view('V2')
  tensors = open_file(npy(raw))
  assert tensors.infos['params/a'].dtype == ml_dtypes.bfloat16
  assert tensors.read('params/a').tolist() == [1, -2.5]


def test_objects_are_never_unpickled(open_file):
  array = np.array([{'a': 1}], object)
  with pytest.raises(FailureError, match='Python objects, which are never'):
    open_file(npy(array, allow_pickle=True))


@pytest.mark.parametrize(
  'array',
  [
    np.array(['text']),
    np.zeros(2, 'V3'),
    np.zeros(2, 'c8'),
    np.zeros(2, [('a', 'f4')]),
  ],
)
def test_what_cannot_be_weights_is_a_wrong_call(array, open_file):
  with pytest.raises(UsageError, match=r'is not a weight file: .*dtype'):
    open_file(npy(array))


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'\x93NUMPY',
    b'\x93NUMPY\x03\x00' + npy(ONES)[8:],
    b'\x93NUMPY\x01\x00\xff\xff' + npy(ONES)[10:],
    npy(ONES)[:40],
    npy(ONES).replace(b'(2, 3)', b'(2, x)'),
    npy(ONES).replace(b"'<f4'", b"'<q9'"),
    npy(ONES).replace(b'{', b'['),
    b'\x93NUMPY\x02\x00' + (9999).to_bytes(4, 'little') + b'(' * 9999,
    # More than numpy parses of a stranger.
    b'\x93NUMPY\x02\x00' + (20_000).to_bytes(4, 'little') + b' ' * 20_000,
  ],
)
def test_a_malformed_header_is_refused(content, open_file):
  with pytest.raises(FailureError, match=r"'params/a.npy' is no .npy array"):
    open_file(content)


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ('(9, 9)', 'the size of .* is not what its shape takes'),
    ('(1, 3)', 'the size of .* is not what its shape takes'),
    ('(-2, -3)', 'the shape of .* is impossible'),
    ('(True, 6)', 'the shape of .* is impossible'),
    ('(1, 99999999999999999999)', 'the shape of .* is impossible'),
    ('(0, 99999999999999999999)', 'the shape of .* is impossible'),
    ('(2**70,)', 'no .npy array'),
    ('(1.5, 4)', 'no .npy array'),
  ],
)
def test_a_lying_shape_is_refused(shape, message, open_file):
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
  size = len(header).to_bytes(2, 'little')
  with pytest.raises(FailureError, match=message):
    open_file(b'\x93NUMPY\x01\x00' + size + header.encode() + ONES.tobytes())


def test_an_empty_archive_is_refused(tmp_path):
  np.savez(tmp_path / 'weights.npz')
  with pytest.raises(UsageError, match='not a weight file'):
    open_tensors(tmp_path / 'weights.npz')
