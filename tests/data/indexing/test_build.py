"""Indexes of shards: made in parallel, resumed, extended, verified."""

import multiprocessing
import os
import shutil

import numpy as np
import pytest

from clip_jax.data import remote
from clip_jax.data.indexing import parts
from clip_jax.data.indexing.build import (
  build_index,
  existing_index,
  verify_index,
)
from clip_jax.data.indexing.manifest import read_index
from clip_jax.data.indexing.selection import Selection
from clip_jax.data.sources import open_source, parse_spec
from clip_jax.errors import FailureError, UsageError
from tests.data.indexing.archives import archive, pairs


@pytest.fixture
def spec(tmp_path):
  """The SPEC of five shards of three records."""
  for shard in range(5):
    members = pairs(3, 10 * shard)
    if shard == 2:
      del members['0021.txt']
    (tmp_path / f'{shard}.tar').write_bytes(archive(members))
  return parse_spec(f'wds:{tmp_path}/{{0..4}}.tar')


def contents(folder):
  """What an index says, but for the files' times."""
  index = read_index(str(folder))
  entries = [index.shard_entries(i).tobytes() for i in range(len(index.names))]
  sums = [(x.name, x.size, x.sha256, dict(x.counts)) for x in index.shards]
  return entries, sums, index.kinds


def test_two_processes_make_the_same_index_as_one(spec, tmp_path):
  one = build_index(spec, str(tmp_path / 'one'))
  two = build_index(spec, str(tmp_path / 'two'), workers=2)
  assert contents(one.folder) == contents(two.folder)
  assert (one.read, len(one.index)) == (5, 15)
  assert not (tmp_path / 'two' / 'parts').exists()


def test_an_index_is_the_data_set(spec, tmp_path):
  folder = build_index(spec, str(tmp_path / 'elsewhere')).folder
  by_pattern, by_index = open_source(spec.text), open_source(f'wds:{folder}')
  assert len(by_pattern) == len(by_index) == 15
  assert [by_pattern[i] for i in range(15)] == [by_index[i] for i in range(15)]
  assert (len(by_pattern.notices), len(by_index.notices)) == (2, 1)


def test_a_moved_folder_takes_its_index_along(spec, tmp_path):
  build_index(spec)
  new = tmp_path.with_name('moved')
  shutil.copytree(tmp_path, new)
  shutil.rmtree(tmp_path)
  source = open_source(f'wds:{new}/*.tar')
  assert len(source.notices) == 1  # the record without a caption
  assert source[14]['caption'] == ['caption 42']


def test_some_of_the_shards(spec, tmp_path):
  build_index(spec)
  source = open_source(f'wds:{tmp_path}/{{3,1}}.tar')
  assert not source.notices
  assert [source.id(i) for i in range(6)] == [
    *(f'1.tar:00{i}' for i in range(10, 13)),
    *(f'3.tar:00{i}' for i in range(30, 33)),
  ]


def killed_after(count, spec):
  """Makes an index, but dies as it reads a shard."""
  read = parts.scan_shard
  calls = []

  def scan_shard(path):
    calls.append(path)
    if len(calls) > count:
      os._exit(9)
    return read(path)

  parts.scan_shard = scan_shard
  build_index(spec)


def test_a_killed_command_goes_on(spec, tmp_path, monkeypatch):
  context = multiprocessing.get_context('spawn')
  process = context.Process(target=killed_after, args=(3, spec))
  process.start()
  process.join()
  assert process.exitcode == 9
  assert len(open_source(spec.text)) == 15  # not taken for a whole index
  read, calls = parts.scan_shard, []
  monkeypatch.setattr(
    parts, 'scan_shard', lambda path: calls.append(path) or read(path)
  )
  summary = build_index(spec)
  assert [os.path.basename(path) for path in calls] == ['3.tar', '4.tar']
  expected = build_index(spec, str(tmp_path / 'other'))
  assert contents(summary.folder) == contents(expected.folder)


def test_only_new_and_changed_shards_are_read_again(spec, tmp_path):
  assert build_index(spec).read == 5
  assert build_index(spec).read == 0
  (tmp_path / '0.tar').write_bytes(archive({'x.gif': b'GIF89a'}))
  (tmp_path / '9.tar').write_bytes(archive(pairs(2, 90)))
  os.remove(tmp_path / '1.tar')
  pattern = parse_spec(f'wds:{tmp_path}/*.tar')
  folder = str(tmp_path / 'clip_jax_index' / '0..4')
  summary = build_index(pattern, folder)
  assert summary.read == 2
  fresh = build_index(pattern, str(tmp_path / 'fresh'))
  assert contents(folder) == contents(fresh.folder)


def test_changed_shards_are_noticed_at_opening(spec, tmp_path):
  build_index(spec)
  os.utime(tmp_path / '1.tar', (1, 1))
  notice = open_source(spec.text).notices[0]
  assert '1 shard written since they were indexed, in the same size' in notice
  (tmp_path / '1.tar').write_bytes(archive(pairs(7)))
  source = open_source(spec.text)
  assert '1 shard missing or of another size' in source.notices[0]
  assert len(source) == 19
  index = tmp_path / 'clip_jax_index' / '0..4'
  with pytest.raises(UsageError, match='1 shard missing or of another size'):
    open_source(f'wds:{index}')


def test_verify_names_what_differs(spec, tmp_path):
  build_index(spec)
  _, index = existing_index(spec, None)
  assert verify_index(index) == []
  with open(tmp_path / '3.tar', 'r+b') as file:
    file.seek(520)
    file.write(b'!')
  assert verify_index(index, workers=2) == ['3.tar']


def test_without_checksums_only_headers_are_compared(spec, tmp_path):
  summary = build_index(spec, checksum=False)
  assert {shard.sha256 for shard in summary.index.shards} == {''}
  with open(tmp_path / '3.tar', 'r+b') as file:
    file.seek(520)
    file.write(b'!')
  assert verify_index(summary.index) == []
  assert build_index(spec).read == 5  # with checksums
  assert build_index(spec, checksum=False).read == 0


def test_large_shards_without_an_index(spec, tmp_path, monkeypatch):
  monkeypatch.setattr('clip_jax.data.indexing.find.MAX_LOCAL_BYTES', 10_000)
  with pytest.raises(UsageError, match=r"once: clip-jax data index 'wds:/.*'"):
    open_source(spec.text)
  build_index(spec)
  assert len(open_source(spec.text)) == 15


def test_a_damaged_index(spec, tmp_path):
  folder = build_index(spec, str(tmp_path / 'index')).folder
  manifest = tmp_path / 'index' / 'index.json'
  text = manifest.read_text()
  for old, new, message in (
    ('"format": 1', '"format": 2', 'of format 2'),
    ('"size"', '"other"', 'a damaged index'),
    ('[3, 3, 2, 3, 3]', '[3, 3, 2, 3]', 'a damaged index'),
    ('[3, 3, 2, 3, 3]', '[3, 3, 2, 3, 4]', 'has another size'),
    ('"counts"', '"other"', "field 'counts' is missing"),
    ('{', '', 'not JSON'),
  ):
    manifest.write_text(text.replace(old, new, 1))
    with pytest.raises(FailureError, match=message):
      open_source(f'wds:{folder}')


def test_a_folder_with_other_files_is_not_taken(spec, tmp_path):
  with pytest.raises(UsageError, match=r'other files, such as 0\.tar'):
    build_index(spec, str(tmp_path))


def test_remote_shards_have_their_index_beside_them(tmp_path):
  import fsspec

  store = fsspec.filesystem('memory')
  for shard in range(3):
    store.pipe(f'/bucket/a/{shard}.tar', archive(pairs(2, 2 * shard)))
  spec = parse_spec('wds:memory://bucket/a/{0..2}.tar')
  assert len(open_source(spec.text)) == 6
  summary = build_index(spec)
  assert summary.folder == 'memory://bucket/a/clip_jax_index/0..2'
  source = open_source('wds:memory://bucket/a/*.tar')
  assert not source.notices
  assert [source[i]['caption'] for i in range(6)] == [
    [f'caption {i}'] for i in range(6)
  ]
  local = build_index(spec, str(tmp_path / 'local'))
  assert contents(local.folder) == contents(summary.folder)
  assert len(open_source(f'wds:{local.folder}')) == 6
  names = store.find('/bucket/a/clip_jax_index')
  assert len(names) == 2
  store.rm('/bucket', recursive=True)


def test_remote_shards_are_asked_once_for_what_they_are(monkeypatch):
  import fsspec

  store = fsspec.filesystem('memory')
  for shard in range(3):
    store.pipe(f'/asked/{shard}.tar', archive(pairs(2, 2 * shard)))
  build_index(parse_spec('wds:memory://asked/*.tar'))
  source = open_source('wds:memory://asked/*.tar')
  calls = []
  info = type(store).info

  def counted(store, path, **options):
    calls.append(path)
    return info(store, path, **options)

  monkeypatch.setattr(remote, '_TRUSTED', -1.0)
  monkeypatch.setattr(type(store), 'info', counted)
  for _ in range(3):
    assert [source[i]['caption'] for i in range(6)] == [
      [f'caption {i}'] for i in range(6)
    ]
  assert not [path for path in calls if path.endswith('.tar')]
  store.rm('/asked', recursive=True)


def test_selections_are_lists_that_are_not_made(spec):
  index = build_index(spec).index
  without = index.kinds.index(('png',))
  selection = Selection(index, [without])
  assert list(selection) == [7]
  rest = Selection(index, {*range(256)} - {without})
  assert list(rest) == [i for i in range(15) if i != 7]
  assert np.array_equal(index.counts([without]), [0, 0, 1, 0, 0])
