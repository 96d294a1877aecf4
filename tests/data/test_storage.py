"""Local and remote files: patterns, ranges, and writing."""

import os

import boto3
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_jax.data import storage
from clip_jax.errors import FailureError, MissingFileError, UsageError
from tests.data.stores import put_in_memory, s3_server

pytestmark = pytest.mark.usefixtures('block_cache_folder')


@pytest.fixture(scope='module')
def bucket():
  with s3_server('shards'):
    yield 's3://shards'


@pytest.mark.parametrize(
  'pattern, names',
  [
    ('{00..03}', ['00', '01', '02', '03']),
    ('{8..11}', ['10', '11', '8', '9']),
    ('a{b,c}d', ['abd', 'acd']),
    ('{a,b{1..2}}', ['a', 'b1', 'b2']),
    ('{0..10..5}', ['0', '10', '5']),
    ('{2..0}', ['0', '1', '2']),
    ('{a..c}', ['a', 'b', 'c']),
    ('{00..01}-{x,y}', ['00-x', '00-y', '01-x', '01-y']),
  ],
)
def test_braces_stand_for_each_of_a_list_or_range(pattern, names, tmp_path):
  for name in names:
    (tmp_path / name).touch()
  paths = storage.expand(f'{tmp_path}/{pattern}')
  assert paths == [f'{tmp_path}/{name}' for name in names]


def test_globs_are_sorted_and_each_path_comes_once(tmp_path):
  for name in ('b.tar', 'a.tar', 'c.txt', '{odd}', 'x[1].tar'):
    (tmp_path / name).touch()
  names = [f'{tmp_path}/{x}' for x in ('a.tar', 'b.tar', 'x[1].tar')]
  assert storage.expand(f'{tmp_path}/*.tar') == names
  assert storage.expand(f'{tmp_path}/{{*.tar,a.tar}}') == names
  assert storage.expand(f'{tmp_path}/{{odd}}') == [f'{tmp_path}/{{odd}}']
  assert storage.expand(f'{tmp_path}/x[1].tar') == names[2:]
  assert storage.expand(f'{tmp_path}/x[{{1..1}}].tar') == names[2:]
  assert storage.expand(f'file://{tmp_path}/a.tar') == names[:1]


@pytest.mark.parametrize('root', ['{}', 'memory://bucket'])
def test_what_is_there_is_no_pattern(root, tmp_path):
  folder = root.format(tmp_path) + '/a [2024] {b,c}'
  names = [f'{folder}/{x}.tar' for x in '01']
  for name in (*names, f'{folder}/0.txt'):
    storage.write_bytes(name, b'content')
  found = storage.find_in(folder, '*.tar')
  assert [x.replace(':///', '://') for x in found] == names
  other = folder.replace('{b,c}', 'x')
  storage.write_bytes(f'{other}/[0].tar', b'content')
  assert storage.expand(other) == [other]
  assert storage.expand(f'{other}/[{{0..0}}].tar') == [f'{other}/[0].tar']


@pytest.mark.parametrize(
  'pattern', ['nothing*', 'none', '{a,none}', '', 'a\0b', '{0..99999999}']
)
def test_a_pattern_without_files_is_refused(pattern, tmp_path):
  (tmp_path / 'a').touch()
  with pytest.raises(UsageError):
    storage.expand(pattern and f'{tmp_path}/{pattern}')


def test_a_range_ends_where_the_file_does(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(bytes(range(100)))
  url = put_in_memory('range/file', path.read_bytes())
  for name in (path, url):
    assert storage.size(name) == 100
    assert storage.read_range(name, 10, 5) == bytes(range(10, 15))
    assert storage.read_range(name, 98, 4 * 2**30) == bytes((98, 99))
    assert storage.read_range(name, 200, 10) == b''
    with storage.open_file(name) as file:
      file.seek(-3, os.SEEK_END)
      assert file.read() == bytes((97, 98, 99))
      file.seek(0)
      assert file.read() == path.read_bytes()
    with pytest.raises(FailureError):
      storage.read_range(name, -1, 2)


def test_writing_replaces_a_file_whole_or_not_at_all(tmp_path):
  for name in (f'{tmp_path}/new/file', 'memory://written/new/file'):
    storage.write_bytes(name, b'one')
    assert storage.read_range(name, 0, 9) == b'one'
    with pytest.raises(ZeroDivisionError), storage.writing(name) as temporary:
      temporary.write_bytes(b'half')
      raise ZeroDivisionError
    assert storage.read_range(name, 0, 9) == b'one'
    storage.write_bytes(name, b'two!')
    assert storage.read_range(name, 0, 9) == b'two!'
    folder = storage.folder_of(name)
    assert storage.list_folder(folder) == ['file']
    assert storage.is_folder(folder) and not storage.is_folder(name)
    assert storage.exists(name) and not storage.exists(f'{name}x')


def test_an_s3_server_is_read_and_written(bucket, pauses):
  for i in range(3):
    storage.write_bytes(f'{bucket}/cc/{i:05}.tar', bytes([i]) * 1000)
  # As consoles make folders, and Spark.
  boto3.client('s3').put_object(Bucket='shards', Key='cc/')
  names = [f'{bucket}/cc/{i:05}.tar' for i in range(3)]
  assert storage.expand(f'{bucket}/cc/*.tar') == names
  assert storage.expand(f'{bucket}/cc/{{00000..00002}}.tar') == names
  assert storage.list_folder(f'{bucket}/cc') == [
    f'{i:05}.tar' for i in range(3)
  ]
  assert storage.is_folder(f'{bucket}/cc')
  for name in ('', '/cc', '/cc/00001.tar'):
    assert storage.exists(bucket + name)
  assert not storage.exists(f'{bucket}/c')
  assert storage.read_range(names[1], 990, 100) == b'\1' * 10
  before = storage.version(names[1])
  storage.write_bytes(names[1], b'\7' * 1000)
  assert storage.version(names[1]) != before
  assert storage.read_range(names[1], 990, 100) == b'\7' * 10
  with pytest.raises(MissingFileError, match=r'shards/none\.tar: no such file'):
    storage.read_range(f'{bucket}/none.tar', 0, 1)
  with pytest.raises(MissingFileError, match='no such bucket nowhere'):
    storage.size('s3://nowhere/a.tar')
  with pytest.raises(UsageError, match='matches no file'):
    storage.expand('s3://nowhere/*.tar')
  with pytest.raises(UsageError, match='matches no file'):
    storage.expand(f'{bucket}/none/*.tar')
  storage.remove_folder(f'{bucket}/cc')
  storage.remove_folder(f'{bucket}/cc')
  assert not storage.exists(f'{bucket}/cc')
  assert not pauses


def test_a_store_that_does_not_answer_is_no_lack_of_a_file(monkeypatch, pauses):
  url = put_in_memory('there/file', b'content')
  assert storage.exists(url)
  assert storage.exists('memory://there')
  assert not storage.exists('memory://nowhere/file')

  def info(self, path, **kwargs):
    raise ConnectionResetError('connection reset by peer')

  monkeypatch.setattr(MemoryFileSystem, 'info', info)
  with pytest.raises(FailureError, match='connection reset'):
    storage.exists(url)


@pytest.mark.parametrize('folder', ['{}/x', 'memory://removed/x'])
def test_a_folder_is_removed_with_all_in_it(folder, tmp_path):
  folder = folder.format(tmp_path)
  for name in ('a', 'b/c', '.d/e'):
    storage.write_bytes(f'{folder}/{name}', b'content')
  storage.write_bytes(f'{folder}y', b'content')
  storage.remove_folder(folder)
  storage.remove_folder(folder)
  assert not storage.exists(folder)
  assert storage.exists(f'{folder}y')


def test_the_common_folder_is_the_deepest(tmp_path):
  for root in (tmp_path, 's3://bucket'):
    names = [f'{root}/a/bc/{x}' for x in ('1', '2/3', '2/4/5')]
    assert storage.common_folder(names) == f'{root}/a/bc'
    assert storage.common_folder(names[1:]) == f'{root}/a/bc/2'
    assert storage.common_folder([*names, f'{root}/a/b']) == f'{root}/a'
