"""Pickles that want to run a program, each with a canary that must not sing."""

import pathlib
import pickle
import struct

import pytest

from clip_jax.errors import FailureError
from clip_jax.interop import torch_pickle
from clip_jax.interop.torch_objects import Opaque, PickleError, TensorView
from clip_jax.interop.torch_pickle import MAX_BYTES, parse
from clip_jax.interop.weight_files import open_tensors
from tests.interop import torch_archives as ta

SYSTEM = ta.name('os', 'system')
TENSOR = ta.view(ta.storage('0', 'float32', 4), (2, 2), (2, 1))


def _command(canary: pathlib.Path) -> bytes:
  return ta.text(f'touch {canary}')


def _by_state(canary: pathlib.Path) -> bytes:
  """Makes os.system the __setstate__ of an object, then sets its state."""
  blank = ta.name('types', 'SimpleNamespace') + ta.EMPTY + b'\x81'
  setter = ta.mapping({'__setstate__': SYSTEM})
  return blank + setter + b'b' + _command(canary) + b'b'


# Each of them really runs its command where pickle reads it.
PAYLOADS = {
  'GLOBAL and REDUCE': lambda path: ta.call(SYSTEM, _command(path)),
  'STACK_GLOBAL': lambda path: ta.call(
    ta.text('os') + ta.text('system') + b'\x93', _command(path)
  ),
  'a dotted STACK_GLOBAL': lambda path: ta.call(
    ta.text('clip_jax.files') + ta.text('os.system') + b'\x93',
    _command(path),
  ),
  'INST': lambda path: b'(' + _command(path) + b'ios\nsystem\n',
  'OBJ': lambda path: b'(' + SYSTEM + _command(path) + b'o',
  'BUILD': _by_state,
  'eval': lambda path: ta.call(
    ta.name('builtins', 'eval'),
    ta.text(f'__import__("os").system("touch {path}")'),
  ),
  'getattr': lambda path: ta.call(
    ta.call(
      ta.name('builtins', 'getattr'),
      ta.call(ta.name('builtins', '__import__'), ta.text('os')),
      ta.text('system'),
    ),
    _command(path),
  ),
  'a list of arguments': lambda path: ta.call(
    ta.name('subprocess', 'check_call'),
    b'](' + ta.text('touch') + ta.text(str(path)) + b'e',
  ),
}


@pytest.fixture(params=PAYLOADS)
def payload(request, tmp_path):
  return PAYLOADS[request.param](tmp_path / 'canary')


# The protocol allows a dotted name from 4 on; the others do not depend on it.
def test_the_payloads_are_real(payload, tmp_path):
  pickle.loads(ta.finished(payload, protocol=4))
  assert (tmp_path / 'canary').exists()


WRAPPINGS = {
  'the whole': lambda payload: payload,
  'a weight': lambda payload: ta.mapping({'a': payload, 'b': TENSOR}),
  'the optimizer': lambda payload: ta.mapping(
    {'state_dict': ta.mapping({'b': TENSOR}), 'optimizer': payload}
  ),
  "a dict's state": lambda payload: (
    ta.mapping({'b': TENSOR}) + ta.mapping({'_metadata': payload}) + b'b'
  ),
  'a module': lambda payload: ta.module(
    {'b': TENSOR, 'deep': ta.module({'deeper': payload})}
  ),
  "a tensor's hooks": lambda payload: ta.call(
    ta.name('torch._utils', '_rebuild_parameter'), TENSOR, b'\x89', payload
  ),
  'thrown away': lambda payload: payload + b'0' + ta.mapping({'b': TENSOR}),
}


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_no_payload_runs_wherever_it_is(wrapping, payload, tmp_path):
  path = ta.write_archive(
    tmp_path / 'model.pt', WRAPPINGS[wrapping](payload), {'0': bytes(16)}
  )
  with pytest.raises(
    FailureError, match=r'calls for|the instruction'
  ) as caught:
    open_tensors(path)
  assert not (tmp_path / 'canary').exists()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_the_wrappings_are_fine_without_a_payload(wrapping):
  parse(ta.finished(WRAPPINGS[wrapping](b'N')))


@pytest.mark.parametrize(
  'named',
  [
    ('torch', '__builtins__'),
    ('torch', 'load'),
    ('torch.hub', 'load'),
    ('torch.storage', '_load_from_bytes'),
    ('torch._utils', 'os.system'),
    ('torch._utils._rebuild_tensor_v2', '__globals__'),
    ('torch.nn.modules.linear', 'Linear'),
    ('collections', 'OrderedDict.__init__'),
    ('', 'torch.Size'),
  ],
)
def test_a_name_is_admitted_only_as_a_whole(named):
  with pytest.raises(PickleError, match='was not executed'):
    parse(ta.finished(ta.name(*named)))


REBUILD = ta.name('torch._utils', '_rebuild_tensor_v2')


@pytest.mark.parametrize(
  'body',
  [
    # What is called is not what may be called, or not with that.
    ta.call(ta.text('os.system'), ta.text('true')),
    ta.call(ta.name('torch', 'FloatStorage'), ta.number(3)),
    ta.call(ta.name('torch._utils', '_rebuild_parameter'), REBUILD),
    ta.call(REBUILD, TENSOR, ta.number(0), ta.EMPTY, ta.EMPTY),
    ta.call(REBUILD, ta.number(0)),
    ta.call(REBUILD, *[ta.number(0)] * 99),
    ta.call(
      ta.name('torch._tensor', '_rebuild_from_type_v2'),
      ta.name('torch.jit._pickle', 'restore_type_tag'),
      b'N',
      ta.sequence(ta.number(1)),
      b'N',
    ),
    ta.call(ta.name('torch', 'Size'), b'](' + b'N' * 65 + b'e'),
    REBUILD + b']R',
    # A storage that is none.
    ta.sequence(*[ta.text('storage')] * 5) + b'Q',
    ta.sequence(ta.text('module'), ta.text('os')) + b'Q',
    ta.text('model') + b'Q',
    ta.storage('0', 'float32', -1),
    # The stack, the marks and the memo.
    b'',
    b'N' * 2,
    b'N\x85\x87',
    b't',
    b'(N',
    b'h\x05',
    b'0',
    b'N}b',
    b'Na',
    b'NNNs',
    b'}(Nu',
    b'}]Ns',
    b'})Ns',
  ],
)
def test_a_malformed_pickle_is_refused(body):
  with pytest.raises(PickleError, match='malformed'):
    parse(ta.finished(body))


@pytest.mark.parametrize(
  'view',
  [
    ta.view(ta.storage('0', 'float32', 4), (2, 3), (3, 1)),
    ta.view(ta.storage('0', 'float32', 4), (2, 2), (3, 1)),
    ta.view(ta.storage('0', 'float32', 4), (4,), (1,), offset=1),
    ta.view(ta.storage('0', 'float32', 4), (0,), (1,), offset=5),
    ta.view(ta.storage('0', 'float32', 4), (2**40, 2**40), (2**40, 1)),
  ],
)
def test_a_tensor_beyond_its_storage_is_refused(view):
  with pytest.raises(PickleError, match="reaches beyond storage '0'"):
    parse(ta.finished(view))


@pytest.mark.parametrize(
  'view',
  [
    ta.view(ta.storage('0', 'float32', 4), (2,), (-1,), offset=1),
    ta.view(ta.storage('0', 'float32', 4), (-2,), (1,)),
    ta.view(ta.storage('0', 'float32', 4), (2,), (1,), offset=-1),
    ta.view(ta.storage('0', 'float32', 4), (2,), (2, 1)),
    ta.view(ta.storage('0', 'float32', 4), (2**62,), (0,)),
  ],
)
def test_an_impossible_tensor_is_refused(view):
  with pytest.raises(PickleError, match='malformed'):
    parse(ta.finished(view))


def test_plain_values_in_every_protocol_are_what_pickle_reads():
  value = {
    'epoch': 3,
    'sizes': [1, -2, 300, 70_000, 2**40, -(2**70)],
    'nested': ({'a': None}, [True, False], (1,), (1, 2), (1, 2, 3, 4), ()),
    'name': 'Straße',
    'rate': 1e-3,
    7: 'optimizers number their states',
  }
  value['again'] = value['sizes']
  for protocol in range(2, 6):
    assert parse(pickle.dumps(value, protocol)) == value
  assert parse(pickle.dumps({1, 'a', b'b'}, 4)) == {1, 'a', b'b'}
  long = list(range(3000))
  assert parse(pickle.dumps(long, 4)) == long


def test_what_training_leaves_beside_weights_is_of_no_interest():
  options = ta.name('argparse', 'Namespace') + ta.EMPTY + b'\x81'
  options += ta.mapping({'lr': ta.number(1)}) + b'b'
  score = ta.call(
    ta.name('numpy.core.multiarray', 'scalar'),
    ta.call(ta.name('numpy', 'dtype'), ta.text('f8')),
    ta.call(ta.name('_codecs', 'encode'), ta.text('x'), ta.text('latin1')),
  )
  result = parse(ta.finished(ta.mapping({'args': options, 'best': score})))
  assert isinstance(result['args'], Opaque)
  assert isinstance(result['best'], Opaque)


def test_a_tensor_with_attributes_is_the_tensor():
  carrying = ta.call(
    ta.name('torch._tensor', '_rebuild_from_type_v2'),
    REBUILD,
    ta.name('torch', 'Tensor'),
    ta.sequence(
      ta.storage('0', 'float32', 4),
      ta.number(0),
      ta.sequence(ta.number(4)),
      ta.sequence(ta.number(1)),
    ),
    ta.mapping({'note': ta.text('x')}),
  )
  result = parse(ta.finished(carrying))
  assert isinstance(result, TensorView)
  assert result.shape == (4,)


def test_bombs_are_bounded(monkeypatch):
  with pytest.raises(PickleError, match='over 67,108,864 bytes'):
    parse(bytes(MAX_BYTES + 1))
  # pickle's own memo would take 16 GiB for this index.
  far = struct.pack('<I', 2**31 - 1)
  assert parse(ta.finished(b'Nr' + far + b'0j' + far)) is None
  # Nothing walks a value whose depth would overflow the stack.
  assert len(parse(ta.finished(b')' + b'\x85' * 30_000))) == 1
  with pytest.raises(PickleError, match='malformed'):
    parse(ta.finished(b'})' + b'\x85' * 30_000 + b'Ns'))
  monkeypatch.setattr(torch_pickle, 'MAX_INSTRUCTIONS', 1000)
  with pytest.raises(PickleError, match='over 1,000 steps'):
    parse(ta.finished(b'N0' * 1000))
