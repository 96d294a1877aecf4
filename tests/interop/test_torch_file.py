import zipfile

import ml_dtypes
import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.weight_files import open_tensors
from tests.interop import torch_archives as ta

TWELVE = np.arange(12, dtype=np.float32)
STORED = ta.storage('0', 'float32', 12)
WEIGHT = ta.tensor('0', TWELVE)


@pytest.fixture
def written(tmp_path):
  """Writes an archive with the storage of `TWELVE`, and opens it."""

  def write(body, **options):
    storages = {'0': TWELVE.tobytes()}
    return open_tensors(
      ta.write_archive(tmp_path / 'model.pt', body, storages, **options)
    )

  return write


@pytest.mark.parametrize('byteorder', ['little', 'big'])
@pytest.mark.parametrize('dtype', ta.CLASSES)
def test_every_dtype_reads_in_both_byte_orders(dtype, byteorder, tmp_path):
  array = np.array([[0, 1, 5], [7, 100, 3]]).astype(
    getattr(ml_dtypes, dtype, dtype)
  )
  words = array.view(f'u{array.itemsize}')
  stored = words.byteswap() if byteorder == 'big' else words
  path = ta.write_archive(
    tmp_path / 'model.pt',
    ta.mapping({'a': ta.tensor('0', array)}),
    {'0': stored.tobytes()},
    byteorder=byteorder,
  )
  tensors = open_tensors(path)
  assert tensors.infos['a'].dtype == array.dtype
  np.testing.assert_array_equal(tensors.read('a'), array, strict=True)


def test_views_and_ties_read_as_torch_shows_them(written):
  matrix = TWELVE.reshape(3, 4)
  views = {
    'whole': ((3, 4), (4, 1), 0, matrix),
    'tied': ((3, 4), (4, 1), 0, matrix),
    'transposed': ((4, 3), (1, 4), 0, matrix.T),
    'window': ((2, 2), (4, 1), 5, matrix[1:, 1:3]),
    'every_other': ((2, 2), (8, 2), 1, matrix[::2, 1::2]),
    'expanded': ((2, 3), (0, 1), 3, np.broadcast_to(TWELVE[3:6], (2, 3))),
    'scalar': ((), (), 11, TWELVE[11]),
    'empty': ((0, 4), (4, 1), 12, np.zeros((0, 4), np.float32)),
  }
  tensors = written(
    ta.mapping(
      {
        name: ta.view(STORED, shape, strides, offset)
        for name, (shape, strides, offset, _) in views.items()
      }
    )
  )
  for name, (*_, expected) in views.items():
    result = tensors.read(name)
    np.testing.assert_array_equal(result, expected)
    assert result.shape == expected.shape
    assert result.flags.c_contiguous and result.flags.aligned


def test_dtypes_without_a_storage_class_lie_in_bytes(tmp_path):
  values = {
    'uint16': np.array([1, 65535], np.uint16),
    'float8_e4m3fn': np.array([1, -2], ml_dtypes.float8_e4m3fn),
  }
  stored = ta.sequence(
    ta.text('storage'),
    ta.name('torch.storage', 'UntypedStorage'),
    ta.text('0'),
    ta.text('cpu'),
    ta.number(7),  # no multiple of an element
  )
  for dtype, value in values.items():
    body = ta.call(
      ta.name('torch._utils', '_rebuild_tensor_v3'),
      stored + b'Q',
      ta.number(1),
      ta.sequence(ta.number(2)),
      ta.sequence(ta.number(1)),
      b'\x89',
      b'N',
      ta.name('torch', dtype),
    )
    content = bytes(value.itemsize) + value.tobytes()
    path = ta.write_archive(
      tmp_path / 'model.pt',
      ta.mapping({'a': body}),
      {'0': content.ljust(7, b'\0')},
    )
    np.testing.assert_array_equal(
      open_tensors(path).read('a'), value, strict=True
    )


def test_a_checkpoint_gives_its_state_dict_and_the_scalars(written):
  tensors = written(
    ta.mapping(
      {
        'epoch': ta.number(3),
        'name': ta.text('run'),
        'state_dict': ta.mapping({'module.a': WEIGHT, 'module.b': WEIGHT}),
        'optimizer': ta.mapping({'momentum': WEIGHT}),
      }
    )
  )
  assert set(tensors.infos) == {'a', 'b'}
  assert tensors.metadata == {'epoch': 3, 'name': 'run'}
  assert tensors.format == 'torch'


@pytest.mark.parametrize(
  ('body', 'names', 'metadata'),
  [
    (ta.mapping({'model': ta.mapping({'a': WEIGHT})}), {'a'}, {}),
    (ta.mapping({'model': WEIGHT, 'n': ta.number(1)}), {'model'}, {'n': 1}),
    # A prefix that some lack is part of the names.
    (
      ta.mapping({'module.a': WEIGHT, 'b': WEIGHT}),
      {'module.a', 'b'},
      {},
    ),
    (
      ta.call(ta.name('collections', 'OrderedDict'))
      + b'('
      + ta.text('a')
      + WEIGHT
      + b'u'
      + ta.mapping({'_metadata': ta.mapping({'version': ta.number(1)})})
      + b'b',
      {'a'},
      {},
    ),
  ],
)
def test_which_dict_is_the_state_dict(written, body, names, metadata):
  tensors = written(body)
  assert set(tensors.infos) == names
  assert tensors.metadata == metadata


def test_a_script_gives_the_tensors_of_its_modules(written):
  shared = ta.module({'weight': WEIGHT, 'training': b'\x88'})
  tensors = written(
    ta.module(
      {
        'visual': ta.module({'conv1': shared, 'proj': WEIGHT, 'none': b'N'}),
        'logit_scale': ta.view(STORED, (), (), 2),
        'context_length': ta.number(77),
        'sizes': ta.call(
          ta.name('torch.jit._pickle', 'build_intlist'), b']' + b'Na'
        ),
      }
    )
  )
  assert tensors.format == 'torchscript'
  assert list(tensors.infos) == [
    'visual.conv1.weight',
    'visual.proj',
    'logit_scale',
  ]
  assert tensors.metadata == {'context_length': 77}
  assert tensors.read('logit_scale') == 2


def test_a_module_inside_itself_is_refused(written):
  made = ta.name('__torch__', 'Loop') + b')\x81q\x00'
  loop = made + b'}(' + ta.text('a') + b'h\x00' + ta.text('b') + b'h\x00ub'
  with pytest.raises(FailureError, match='nested over 100 deep'):
    written(loop)


def test_a_name_that_would_be_repeated_without_end_is_refused(written):
  with pytest.raises(FailureError, match='a module of over 1,000 letters'):
    written(ta.module({'a' * 1001: ta.module({'b': WEIGHT, 'c': WEIGHT})}))


def test_a_bomb_of_shared_modules_is_refused(written):
  """Forty levels, each of which has the next one twice."""
  body = ta.module({'a': WEIGHT})
  for _ in range(40):
    body += b'q\x00' + ta.name('__torch__', 'M') + b')\x81'
    body += b'}(' + ta.text('a') + b'h\x00' + ta.text('b') + b'h\x00ub'
  # The inner modules lie below on the stack: leave only the outermost there.
  body = b'(' + body + b't' + b'0' + b'h\x00'
  with pytest.raises(FailureError, match='attributes'):
    written(body)


@pytest.mark.parametrize(
  'body',
  [
    WEIGHT,
    b'](' + WEIGHT + b'e',
    ta.mapping({'epoch': ta.number(3)}),
    ta.mapping({'state_dict': b'}', 'a': WEIGHT}),
    b'}(' + ta.number(0) + WEIGHT + b'u',
  ],
)
def test_an_archive_without_a_state_dict_is_a_wrong_call(written, body):
  with pytest.raises(UsageError, match='holds no state dict'):
    written(body)


def test_a_script_without_weights_is_a_wrong_call(written):
  with pytest.raises(UsageError, match='without parameters'):
    written(ta.module({'training': b'\x88'}))


@pytest.mark.parametrize(
  ('stored', 'message'),
  [
    (ta.storage('9', 'float32', 12), 'should have 48 bytes and is missing'),
    (ta.storage('0', 'float32', 13), 'should have 52 bytes and has 48'),
    (ta.storage('0', 'float32', 11), 'should have 44 bytes and has 48'),
    (ta.storage('0', 'float64', 12), 'should have 96 bytes and has 48'),
    (ta.storage('../0', 'float32', 12), 'is missing'),
  ],
)
def test_a_storage_must_be_there_as_announced(written, stored, message):
  with pytest.raises(FailureError, match=message):
    written(ta.mapping({'a': ta.view(stored, (2,), (1,))}))


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((2**30,), 'would grow from 48 to 4,294,967,296 bytes'),
    ((2**40, 2**40), "the shape of 'a' is impossible"),
  ],
)
def test_an_expanded_tensor_cannot_be_a_bomb(written, shape, message):
  strides = (0,) * len(shape)
  with pytest.raises(FailureError, match=message):
    written(ta.mapping({'a': ta.view(STORED, shape, strides)}))


def test_compressed_storages_read_and_others_byte_orders_do_not(written):
  body = ta.mapping({'a': WEIGHT})
  packed = written(body, compression=zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(packed.read('a'), TWELVE)
  with pytest.raises(FailureError, match="its byte order is b'middle'"):
    written(body, byteorder='middle')


def test_an_unread_optimizer_is_not_read(tmp_path, monkeypatch):
  """Its storage's bytes are never asked for."""
  from clip_jax.interop.zip_archive import ZipArchive

  asked = []
  read = ZipArchive.read

  def spy(self, name, **options):
    asked.append(name)
    return read(self, name, **options)

  monkeypatch.setattr(ZipArchive, 'read', spy)
  moment = ta.tensor('1', TWELVE)
  body = ta.mapping({'state_dict': ta.mapping({'a': WEIGHT}), 'm': moment})
  storages = {'0': TWELVE.tobytes(), '1': TWELVE.tobytes()}
  path = ta.write_archive(tmp_path / 'model.pt', body, storages)
  with open_tensors(path) as tensors:
    for name in tensors.infos:
      tensors.read(name)
  assert asked == ['archive/data.pkl', 'archive/data/0']


def test_a_pickle_over_the_limit_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr('clip_jax.interop.torch_file.MAX_BYTES', 100)
  path = ta.write_archive(tmp_path / 'model.pt', ta.mapping({'a': WEIGHT}))
  with pytest.raises(FailureError, match=r"'archive/data.pkl' is over 100 b"):
    open_tensors(path)
