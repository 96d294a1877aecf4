"""Files in stores: blocks that are kept, retries and errors."""

import os
import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_jax.data import block_cache, remote, storage
from clip_jax.data.sources import open_source
from clip_jax.data.sources.arrow_columns import read_image
from clip_jax.errors import FailureError, MissingFileError, UsageError
from tests.data.fetching.server import closed, good, in_turn, serving, status
from tests.data.indexing.archives import archive, pairs
from tests.data.stores import put_in_memory

pytestmark = pytest.mark.usefixtures('block_cache_folder')


def test_blocks_of_a_remote_file_are_read_once(monkeypatch):
  content = os.urandom(3 * block_cache.BLOCK_BYTES + 17)
  url = put_in_memory('blocks/file', content)
  asked = []
  real = MemoryFileSystem.cat_file

  def cat_file(self, path, start=None, end=None, **kwargs):
    asked.append((start, end))
    return real(self, path, start, end, **kwargs)

  monkeypatch.setattr(MemoryFileSystem, 'cat_file', cat_file)
  middle = block_cache.BLOCK_BYTES + 5
  assert storage.read_range(url, middle, 10) == content[middle : middle + 10]
  assert storage.read_range(url, 0, len(content)) == content
  assert storage.read_range(url, 0, len(content)) == content
  block = block_cache.BLOCK_BYTES
  assert asked == [(block, 2 * block), (0, block), (2 * block, len(content))]


def test_what_passes_is_tried_again(monkeypatch, pauses):
  url = put_in_memory('retries/file', b'content')
  real = MemoryFileSystem.cat_file
  faults = [OSError('503 slow down'), b'cont', TimeoutError()]

  def cat_file(self, path, start=None, end=None, **kwargs):
    if not faults:
      return real(self, path, start, end, **kwargs)
    fault = faults.pop()
    if isinstance(fault, bytes):
      return fault
    raise fault

  monkeypatch.setattr(MemoryFileSystem, 'cat_file', cat_file)
  assert storage.read_range(url, 0, 7) == b'content'
  assert pauses == [0.5, 1.0, 2.0]


def test_what_stays_wrong_fails_with_one_line(monkeypatch, pauses):
  url = put_in_memory('broken/file', b'content')

  def info(self, path, **kwargs):
    raise ConnectionResetError('connection reset by peer')

  monkeypatch.setattr(MemoryFileSystem, 'info', info)
  with pytest.raises(FailureError, match=r'memory://broken/file: .*reset'):
    storage.read_range(url, 0, 7)
  assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_web_server_that_fails_for_now_is_asked_again(pauses):
  answer = in_turn(status(503), status(429), good(b'content'))
  with serving({'/a.tar': answer}) as server:
    assert storage.read_range(server.url('/a.tar'), 0, 7) == b'content'
  assert pauses == [0.5, 1.0]


def test_a_web_server_that_keeps_failing_lacks_no_file(pauses):
  with serving({'/busy': status(503), '/closed': closed}) as server:
    for name, reason in (('/busy', '503'), ('/closed', 'isconnected')):
      pauses.clear()
      with pytest.raises(FailureError, match=reason) as caught:
        read_image(server.url(name))
      assert not isinstance(caught.value, MissingFileError)
      assert len(pauses) == 5
  with pytest.raises(FailureError, match='also at the 6th attempt'):
    storage.exists(server.url('/ended'))


def test_a_web_server_refuses_or_lacks_a_file_at_once(pauses):
  answers = {'/in': status(401), '/no': status(403), '/gone': status(410)}
  with serving(answers) as server:
    for name in ('/in', '/no'):
      with pytest.raises(FailureError, match=r'no access \(40[13], .*; check'):
        storage.size(server.url(name))
    for name in ('/gone', '/nowhere'):
      with pytest.raises(MissingFileError, match='no such file'):
        storage.size(server.url(name))
      assert not storage.exists(server.url(name))
  assert not pauses


@pytest.mark.parametrize(
  'header', ['ETag', 'Content_MD5', 'Digest', 'Last_Modified']
)
def test_a_web_servers_headers_tell_a_new_version(header, monkeypatch):
  monkeypatch.setattr(remote, '_TRUSTED', -1.0)
  with serving({'/a': good(b'one', **{header: 'first'})}) as server:
    assert storage.read_range(server.url('/a'), 0, 3) == b'one'
    assert storage.version(server.url('/a')) == '3-first'
    server.answers['/a'] = good(b'two', **{header: 'second'})
    assert storage.read_range(server.url('/a'), 0, 3) == b'two'


def test_patterns_match_what_a_web_server_lists():
  page = b'<a href="../">up</a> <a href="0.tar">0</a> <a href="1.tar">1</a>'
  answers = {'/shards/': good(page, Content_Type='text/html')}
  for shard in '01':
    answers[f'/shards/{shard}.tar'] = good(archive(pairs(2, 2 * int(shard))))
  with serving(answers) as server:
    source = open_source(f'wds:{server.url("/shards/*.tar")}')
    assert [source.captions(i) for i in range(4)] == [
      [f'caption {i}'] for i in range(4)
    ]


def test_a_file_without_a_size_is_no_folder():
  def sizeless(handler):
    handler.send_response(200)
    handler.send_header('Connection', 'close')
    handler.end_headers()
    handler.close_connection = True

  message = 'does not say how large it is'
  with (
    serving({'/a': sizeless}) as server,
    pytest.raises(FailureError, match=message),
  ):
    storage.size(server.url('/a'))


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(UsageError, match=r'pip install "\.\[tpu\]"'):
    storage.read_range('gs://bucket/file', 0, 1)
  with pytest.raises(UsageError, match='nosuch'):
    storage.expand('nosuch://bucket/*.tar')


def test_no_access_is_one_line_and_not_repeated(monkeypatch, pauses):
  url = put_in_memory('secret/file', b'content')

  def cat_file(self, path, **kwargs):
    raise PermissionError('Forbidden')

  monkeypatch.setattr(MemoryFileSystem, 'cat_file', cat_file)
  with pytest.raises(FailureError, match=r'no access \(Forbidden\); check'):
    storage.read_range(url, 0, 7)
  assert not pauses


def test_a_library_opens_a_copy(tmp_path, monkeypatch):
  local = tmp_path / 'file'
  local.write_bytes(b'local')
  assert storage.local_copy(local) == str(local)
  url = put_in_memory('copies/file', b'c' * 1000)
  path = storage.local_copy(url)
  assert storage.read_range(path, 0, 2000) == b'c' * 1000
  before = os.stat(path).st_ino
  assert os.stat(storage.local_copy(url)).st_ino == before
  monkeypatch.setenv(block_cache.SIZE_VARIABLE, '0.000001')
  with pytest.raises(FailureError, match='CLIP_JAX_CACHE_GB=1e-06 is too'):
    storage.local_copy(url)
