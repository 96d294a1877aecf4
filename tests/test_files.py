"""The door through which files from outside are opened."""

import dataclasses
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from clip_jax import files
from clip_jax.errors import FailureError, MissingFileError, UsageError
from clip_jax.files import read_object, replacing, to_bytes
from clip_jax.interop.npz_file import write_npz
from clip_jax.interop.safetensors_file import write_safetensors


def test_a_typed_path_has_its_tilde_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  assert files.typed_path('~/x') == Path('/home/somebody/x')
  assert files.typed_path('x~') == Path('x~')
  assert files.expand_path('~/x') == '/home/somebody/x'
  assert files.expand_path('gs://bucket/~/x') == 'gs://bucket/~/x'


def test_an_unknown_user_is_no_folder_called_tilde(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UsageError, match=r"no user 'nobody-here'.*\./~nobody"):
    files.typed_path('~nobody-here/x')
  assert files.typed_path('./~nobody-here/x') == Path('~nobody-here/x')
  (tmp_path / '~our-backup').mkdir()
  assert files.typed_path('~our-backup') == Path('~our-backup')


@pytest.mark.parametrize('path', ['', 'a\0b'])
def test_what_can_be_no_path_is_refused(path):
  with pytest.raises(UsageError, match='path'):
    files.typed_path(path)


def test_a_missing_file_is_both_kinds_of_error(tmp_path):
  with pytest.raises(MissingFileError, match=r'none\.txt: no such file'):
    files.read_text(tmp_path / 'none.txt')
  assert issubclass(MissingFileError, FileNotFoundError)
  assert issubclass(MissingFileError, FailureError)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', '/dev/zero'):
    with pytest.raises(FailureError, match='a pipe or a device, not a file'):
      files.read_bytes(path)
  with pytest.raises(FailureError, match='a folder, not a file'):
    files.read_bytes(tmp_path)
  with pytest.raises(FailureError, match='null'):
    files.read_bytes('a\0b')


def test_a_file_over_the_limit_is_refused(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'12345')
  assert files.read_bytes(path, 5) == b'12345'
  with pytest.raises(FailureError, match='5 bytes, over the limit of 4'):
    files.read_bytes(path, 4)


def test_text_that_is_not_utf8_names_its_line(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'\xef\xbb\xbfone\ntwo\n')
  assert files.read_text(path) == 'one\ntwo\n'
  path.write_bytes(b'one\ntw\xff\n')
  with pytest.raises(FailureError, match=r'a\.txt, line 2: not UTF-8'):
    files.read_text(path)


def test_json_as_deep_as_the_limit_is_read(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('[' * files.MAX_DEPTH + ']' * files.MAX_DEPTH)
  assert isinstance(files.read_json(path), list)
  for deep in (files.MAX_DEPTH + 1, 100_000):
    path.write_text('{"a":' * deep + '1' + '}' * deep)
    with pytest.raises(FailureError, match=r'a\.json.* nested'):
      files.read_json(path)


def test_an_object_comes_back(tmp_path):
  path = tmp_path / 'a.json'
  content = {'name': 'Größe', 'sizes': [1, 2]}
  path.write_bytes(to_bytes(content))
  assert read_object(path) == content
  assert 'Größe' in path.read_text('utf-8')
  path.write_bytes(to_bytes({'name': os.fsdecode(b'no \xff UTF-8')}))
  assert read_object(path) == {'name': 'no \udcff UTF-8'}


def test_a_missing_file_is_empty(tmp_path):
  assert read_object(tmp_path / 'none.json') == {}


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"a": ', r'a\.json is not JSON'),
    (b'\xff\xfe', r'a\.json, line 1: not UTF-8'),
    (b'[' * 100_000, r'a\.json is not JSON'),
    (b'[1]', r'a\.json holds no JSON object'),
  ],
)
def test_what_is_no_object_is_refused_in_one_line(tmp_path, content, message):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(FailureError, match=message) as caught:
    read_object(path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ([], 'holds no JSON object'),
    ({'name': 'x'}, "the field 'size' is missing"),
    ({'size': '3'}, "the field 'size' is '3', and should be of type int"),
    ({'size': True}, "the field 'size' is True"),
    ({'size': 3, 'name': 4}, "the field 'name' is 4"),
  ],
)
def test_fields_are_checked_against_a_schema(content, message):
  with pytest.raises(FailureError, match=message):
    files.check_fields('a.json', content, {'size': int}, {'name': str})


def test_other_fields_are_left_alone():
  content = {'size': 3, 'more': None}
  assert files.check_fields('a.json', content, {'size': int}) == content


@dataclasses.dataclass
class _Note:
  ids: list[str]
  share: float
  place: tuple | None = None
  of: dict[str, int] = dataclasses.field(default_factory=dict)


def test_a_dataclass_is_made_of_fields_of_its_types():
  note = files.read_fields('f', {'ids': ['a'], 'share': 1}, _Note)
  assert note == _Note(['a'], 1)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ([], 'holds no JSON object'),
    ({'ids': []}, "the field 'share' is missing"),
    ({'ids': [1], 'share': 1}, "the field 'ids' holds something else"),
    ({'ids': 'ab', 'share': 1}, "the field 'ids' holds something else"),
    ({'ids': [], 'share': True}, "the field 'share' holds something else"),
    ({'ids': [], 'share': '1'}, "the field 'share' holds something else"),
    ({'ids': [], 'share': 1, 'of': {'a': 'b'}}, "the field 'of' holds"),
    ({'ids': [], 'share': 1, 'place': 3}, "the field 'place' holds"),
    ({'ids': [], 'share': 1, 'more': 3}, "the field 'more' is not known"),
  ],
)
def test_of_other_fields_none_is_made(content, message):
  with pytest.raises(FailureError, match=f'f: .*{message}|f: {message}'):
    files.read_fields('f', content, _Note)


def test_a_folder_with_a_pipe_or_a_vast_description_is_refused(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'info.json').touch()
  (tmp_path / 'a' / 'data').touch()
  files.check_folder(tmp_path, ('.json',))
  files.check_folder(tmp_path / 'none', ('.json',))
  os.truncate(tmp_path / 'a' / 'data', 2**33)
  files.check_folder(tmp_path, ('.json',))
  os.truncate(tmp_path / 'a' / 'info.json', 2**33)
  with pytest.raises(FailureError, match=r'info\.json: .* over the limit'):
    files.check_folder(tmp_path, ('.json',))
  (tmp_path / 'a' / 'info.json').unlink()
  os.mkfifo(tmp_path / 'a' / 'pipe')
  with pytest.raises(FailureError, match='pipe: a pipe or a device'):
    files.check_folder(tmp_path, ('.json',))


def test_appending_makes_the_file_and_names_what_it_cannot_write(tmp_path):
  path = tmp_path / 'lines'
  files.append(path, b'a\n')
  files.append(path, b'b\n')
  assert path.read_bytes() == b'a\nb\n'
  with pytest.raises(FailureError, match='is a directory'):
    files.append(tmp_path, b'a\n')
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(FailureError, match='pipe: no such device'):
    files.append(tmp_path / 'pipe', b'a\n')


def test_a_lock_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  files.open_lock(tmp_path / 'pipe').close()
  files.open_lock(tmp_path / 'new').close()
  assert (tmp_path / 'new').exists()
  with pytest.raises(FailureError, match='is a directory'):
    files.open_lock(tmp_path)


def test_a_lock_that_is_held_raises_the_given_error(tmp_path):
  path, held = tmp_path / 'lock', UsageError('it is held')
  with (
    files.holding_lock(path, held),
    pytest.raises(UsageError, match='it is held'),
    files.holding_lock(path, held),
  ):
    raise AssertionError
  with files.holding_lock(path, held):  # it ends with its block
    pass


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
