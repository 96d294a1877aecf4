import json
import os
import struct

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop import safetensors_file
from clip_jax.interop.safetensors_file import write_safetensors
from clip_jax.interop.tensor_file import DTYPES
from clip_jax.interop.weight_files import open_tensors

WEIGHT = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}
BIAS = {'dtype': 'F16', 'shape': [3], 'data_offsets': [24, 30]}
HEADER = {'weight': WEIGHT, 'bias': BIAS}
DATA = bytes(range(30))


def entries(**changes):
  """The header with some of the bias's fields changed."""
  return {'weight': WEIGHT, 'bias': BIAS | changes}


@pytest.fixture
def open_file(tmp_path):
  """Opens a file with this header, an object or a text."""

  def open_file(header, data=DATA):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / 'model.safetensors'
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
    return open_tensors(path)

  return open_file


@pytest.mark.parametrize('dtype', sorted(DTYPES, key=str), ids=str)
def test_what_is_written_reads_back_in_every_dtype(dtype, tmp_path):
  array = np.array([[1, 0.5, 2], [4, 1, 1]]).astype(dtype)
  tensors = {'matrix': array, 'turned': array.T, 'scalar': array[1, 0]}
  tensors = {name: np.asarray(value) for name, value in tensors.items()}
  tensors['empty'] = array[:0]
  path = tmp_path / 'model.safetensors'
  write_safetensors(path, tensors, {'format': 'pt'})

  with open_tensors(path) as result:
    assert result.metadata == {'format': 'pt'}
    assert set(result.infos) == set(tensors)
    for name, expected in tensors.items():
      np.testing.assert_array_equal(result.read(name), expected, strict=True)
  theirs = dict(safetensors.deserialize(path.read_bytes()))['turned']
  assert theirs['shape'] == [3, 2]
  assert theirs['data'] == array.T.tobytes()


def test_a_file_whose_header_ends_anywhere_reads_aligned(open_file):
  """Files from before the format padded its header."""
  text = json.dumps(HEADER).encode()
  for spaces in range(8):
    tensors = open_file(text + b' ' * spaces)
    result = tensors.read('weight')
    assert result.flags.aligned
    assert result.tobytes() == DATA[:24]


def test_the_mapped_file_cannot_be_written(open_file):
  with pytest.raises(ValueError, match='read-only'):
    open_file(HEADER).read('weight')[:] = 1


@pytest.mark.parametrize(
  ('header', 'message'),
  [
    (b'{"a"}', 'is not JSON'),
    (b'{' * 100_000, 'is not JSON'),
    (b'{"a": ' + b'[' * 100_000, 'is not JSON'),
    (b'{"a": 1' + b'0' * 5_000 + b'}', 'is not JSON'),
    (b'{"\xff": 1}', 'is not JSON'),
    (b'{"a": {}, "a": {}}', 'has a key twice'),
    (b'{"a": {"dtype": "F32", "dtype": "F16"}}', 'has a key twice'),
    ({'weight': []}, "the header of 'weight' is malformed"),
    ({'weight': WEIGHT | {'more': 1}}, "the header of 'weight' is malformed"),
    ({'weight': {'dtype': 'F32'}}, "the header of 'weight' is malformed"),
    (entries(data_offsets=[24]), "the header of 'bias' is malformed"),
    (entries(data_offsets=[24.0, 30]), "the header of 'bias' is malformed"),
    (entries(dtype=None), "the header of 'bias' is malformed"),
    (entries(shape='3'), "the header of 'bias' is malformed"),
    (entries(dtype='F4'), "'bias' is of an unknown dtype, 'F4'"),
    (entries(shape=[-3]), "the shape of 'bias' is impossible"),
    (entries(shape=[3.0]), "the shape of 'bias' is impossible"),
    (entries(shape=[True, 3]), "the shape of 'bias' is impossible"),
    (entries(shape=[2**62, 3]), "the shape of 'bias' is impossible"),
    (entries(shape=[2**62, 0]), "the shape of 'bias' is impossible"),
    (entries(shape=[1] * 65), "the shape of 'bias' is impossible"),
    (entries(shape=[4]), r"'bias' has F16 \[4\], 8 bytes, and its offsets"),
    (entries(dtype='F32'), r"'bias' has F32 \[3\], 12 bytes, and its offsets"),
    (entries(data_offsets=[30, 24]), "'bias' has F16 .* offsets say otherwise"),
    (entries(data_offsets=[20, 26]), "'bias' overlaps another at offset 20"),
    (entries(data_offsets=[0, 6]), "'weight' overlaps another at offset 0"),
    (entries(data_offsets=[25, 31]), "'bias' leaves a gap at offset 24"),
    (entries(data_offsets=[-6, 0]), "'bias' overlaps another at offset -6"),
    ({'weight': WEIGHT}, 'take 24 bytes and it has 30 .* cut off'),
    (
      entries(shape=[50], data_offsets=[24, 124]),
      'take 124 bytes and it has 30 .* cut off',
    ),
    (
      entries(shape=[2**50], data_offsets=[24, 24 + 2**51]),
      'and it has 30 .* cut off',
    ),
    (HEADER | {'__metadata__': {'format': 1}}, '__metadata__ is not text'),
    (HEADER | {'__metadata__': []}, '__metadata__ is not text'),
  ],
)
def test_a_lying_header_is_refused(header, message, open_file):
  with pytest.raises(FailureError, match=message) as caught:
    open_file(header)
  assert '\n' not in str(caught.value)
  assert len(str(caught.value)) < 600


@pytest.mark.parametrize('size', [31, 10**6, 2**40, 2**63])
def test_a_lying_length_is_refused(size, tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(struct.pack('<Q', size) + b'{' + bytes(29))
  with pytest.raises(FailureError, match='has 38 bytes, fewer than the header'):
    open_tensors(path)


def test_a_header_over_the_limit_is_not_parsed(open_file, monkeypatch):
  monkeypatch.setattr(safetensors_file, 'MAX_HEADER', 100)
  with pytest.raises(FailureError, match='its header is over 100 bytes'):
    open_file(HEADER)


def test_a_file_without_tensors_is_a_wrong_call(open_file):
  with pytest.raises(UsageError, match='holds no tensor'):
    open_file({'__metadata__': {'format': 'pt'}}, b'')


OFFSETS = st.integers(-3, 40)


@given(
  shape=st.lists(st.integers(-1, 7), max_size=3),
  dtype=st.sampled_from([*safetensors_file.DTYPES, 'F5']),
  begin=OFFSETS,
  end=OFFSETS,
)
def test_a_header_is_read_only_where_the_library_reads_it(
  shape, dtype, begin, end, tmp_path_factory
):
  bias = {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}
  text = json.dumps({'weight': WEIGHT, 'bias': bias}).encode()
  path = tmp_path_factory.mktemp('header') / 'model.safetensors'
  path.write_bytes(struct.pack('<Q', len(text)) + text + DATA)
  try:
    ours = open_tensors(path)
  except FailureError:
    ours = None
  try:
    theirs = dict(safetensors.deserialize(path.read_bytes()))
  except safetensors.SafetensorError:
    theirs = None
  assert (ours is None) == (theirs is None)
  if ours and theirs:
    assert ours.read('bias').tobytes() == theirs['bias']['data']


def test_what_has_no_code_is_not_written(tmp_path):
  path = tmp_path / 'model.safetensors'
  with pytest.raises(UsageError, match="cannot hold 'a' of dtype complex64"):
    write_safetensors(path, {'a': np.zeros(2, np.complex64)}, {})
  with pytest.raises(UsageError, match="cannot hold '__metadata__'"):
    write_safetensors(path, {'__metadata__': np.zeros(2)}, {})
  assert os.listdir(tmp_path) == []
