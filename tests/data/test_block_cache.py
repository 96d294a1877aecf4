"""Blocks of remote files on the disk: bounded, whole, and shared."""

import os
import subprocess
import sys

import pytest

from clip_jax.data import block_cache
from clip_jax.errors import UsageError

BLOCK = block_cache.BLOCK_BYTES


@pytest.fixture
def folder(block_cache_folder):
  return block_cache_folder


class Store:
  """A remote file that counts what is asked of it."""

  def __init__(self, blocks: int):
    self.content = os.urandom(blocks * BLOCK)
    self.asked: list[int] = []

  def fetch(self, start: int, end: int) -> bytes:
    self.asked.append(start // BLOCK)
    return self.content[start:end]

  def read(self, start: int, end: int, key: str = 'key') -> bytes:
    size = len(self.content)
    data = block_cache.read(key, size, start, end, self.fetch)
    assert data == self.content[start:end]
    return data


def kept(folder) -> int:
  """The bytes of all files in the cache."""
  return sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())


def test_blocks_that_were_used_longest_ago_go(folder, monkeypatch):
  monkeypatch.setenv(block_cache.SIZE_VARIABLE, str(10 * BLOCK / 1e9))
  monkeypatch.setattr(block_cache, '_TOUCH_AFTER', 0.0)
  store = Store(30)
  for index in range(30):
    store.read(index * BLOCK, index * BLOCK + 10)
    for path in folder.rglob('*'):  # time passes
      status = path.stat()
      os.utime(path, (status.st_atime, status.st_mtime - 10))
    store.read(0, 10)  # is used all the time
    assert kept(folder) <= 10 * BLOCK
  assert store.asked == list(range(30))
  store.read(29 * BLOCK, 30 * BLOCK)
  store.read(2 * BLOCK, 3 * BLOCK)
  assert store.asked == [*range(30), 2]


def test_a_damaged_block_is_fetched_again(folder):
  store = Store(1)
  store.read(0, BLOCK)
  (path,) = (x for x in folder.rglob('*') if x.stat().st_size > BLOCK)
  whole = path.read_bytes()
  for damaged in (b'', whole[:-1], whole[:100], b'\0' * len(whole), whole * 2):
    path.write_bytes(damaged)
    store.read(5, 25)
  assert len(store.asked) == 6
  store.read(5, 25)
  assert len(store.asked) == 6


def test_another_version_is_another_block(folder):
  first, second = Store(1), Store(1)
  first.read(0, 10, key='file 1')
  second.read(0, 10, key='file 2')
  assert second.asked == [0]


@pytest.mark.parametrize('size', ['0', '0.0'])
def test_nothing_is_kept_where_it_may_not(folder, monkeypatch, size):
  monkeypatch.setenv(block_cache.SIZE_VARIABLE, size)
  store = Store(2)
  store.read(10, BLOCK + 10)
  store.read(10, BLOCK + 10)
  assert len(store.asked) == 2
  assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_told_once(
  tmp_path, monkeypatch, capsys
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv(block_cache.FOLDER_VARIABLE, str(tmp_path / 'file/x'))
  store = Store(2)
  store.read(0, BLOCK)
  store.read(0, 2 * BLOCK)
  error = capsys.readouterr().err
  assert error.count('warning: ') == 1
  assert 'cannot be kept there (not a directory)' in error


@pytest.mark.parametrize('size', ['x', '-1', 'nan', 'inf'])
def test_a_size_is_a_number(folder, monkeypatch, size):
  monkeypatch.setenv(block_cache.SIZE_VARIABLE, size)
  with pytest.raises(UsageError, match='CLIP_JAX_CACHE_GB='):
    Store(1).read(0, 1)


_WORKER = """
import random, sys
from clip_jax.data import block_cache
BLOCK = block_cache.BLOCK_BYTES
content = bytes(range(256)) * (40 * BLOCK // 256)
rng = random.Random(int(sys.argv[1]))
for _ in range(150):
  start = rng.randrange(len(content) - 1000)
  data = block_cache.read(
    'key', len(content), start, start + 1000, lambda a, b: content[a:b]
  )
  assert data == content[start : start + 1000]
"""


def test_processes_share_it(folder, monkeypatch):
  monkeypatch.setenv(block_cache.SIZE_VARIABLE, str(10 * BLOCK / 1e9))
  workers = [
    subprocess.Popen([sys.executable, '-c', _WORKER, str(seed)])
    for seed in range(3)
  ]
  assert [worker.wait(60) for worker in workers] == [0, 0, 0]
  assert kept(folder) <= 14 * BLOCK  # three write between two looks
  assert not list(folder.rglob('*.part'))
