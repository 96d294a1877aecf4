"""Shards on disk: what is written is read, and what is damaged is named."""

import dataclasses
import json
import os

import numpy as np
import pytest

from clip_jax.errors import FailureError, MissingFileError
from clip_jax.inference.shards import Shard, ShardStore, make_shards

SHARD = Shard(0, 'image', 0, 2)
NOTES = {'ids': ['a', 'b'], 'corrupt': {}, 'truncated': 0}
RECORDS = {'number': 0, 'kind': 'image', 'start': 0, 'stop': 2}


@dataclasses.dataclass(frozen=True)
class Notes:
  ids: list[str]
  corrupt: dict[str, str]
  truncated: int


@pytest.fixture
def store(tmp_path):
  return ShardStore(tmp_path, Notes, {'vectors': (np.float32, 2)})


def write(folder, notes, vectors=None):
  vectors = np.ones((2, 3), np.float32) if vectors is None else vectors
  text = notes if isinstance(notes, bytes) else json.dumps(notes).encode()
  np.savez(
    folder / SHARD.file_name, vectors=vectors,
    notes=np.frombuffer(text, np.uint8),
  )  # fmt: skip


def test_what_was_written_is_read(store):
  vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
  assert not store.has(SHARD)
  store.write(SHARD, Notes(**NOTES), {'vectors': vectors})
  assert store.has(SHARD)
  assert store.read_notes(SHARD) == Notes(**NOTES)
  np.testing.assert_array_equal(store.read_arrays(SHARD)['vectors'], vectors)
  assert os.listdir(store.path) == [SHARD.file_name]


def test_shards_that_are_missing_or_damaged_are_left_out(store):
  shards = make_shards('image', 6, 2)
  assert store.read_all(shards) == {}
  for shard in shards[:2]:
    store.write(shard, Notes(**NOTES), {'vectors': np.ones((2, 3), np.float32)})
  path = store.path / shards[1].file_name
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(MissingFileError):
    store.read_notes(shards[2])
  contents = store.read_all(shards)
  assert list(contents) == [0]
  notes, arrays = contents[0]
  assert notes.ids == ['a', 'b'] and arrays['vectors'].shape == (2, 3)


def test_the_manifest_is_what_was_written(store):
  assert store.read_manifest() is None
  store.write_manifest({'model': 'x'})
  assert store.read_manifest() == {'model': 'x'}
  (store.path / 'manifest.json').write_text('[' * 100_000)
  with pytest.raises(FailureError, match='manifest'):
    store.read_manifest()


@pytest.mark.parametrize(
  'change',
  [
    {'number': 1}, {'ids': 'ab'}, {'ids': [1, 2]}, {'corrupt': {'a': 1}},
    {'truncated': '1'}, {'more': 1}, {'truncated': True},
  ],
)  # fmt: skip
def test_notes_of_another_form_are_damage(store, change):
  write(store.path, {**NOTES, **RECORDS, **change})
  with pytest.raises(FailureError, match=r'npz is damaged .* remove it'):
    store.read_notes(SHARD)


@pytest.mark.parametrize('notes', [b'[]', b'\xff', b'[' * 100_000, b'3', b''])
def test_notes_that_are_no_object_are_damage(store, notes):
  write(store.path, notes)
  with pytest.raises(FailureError, match='is damaged'):
    store.read_notes(SHARD)


@pytest.mark.parametrize('vectors', [np.ones(2, np.float32), np.ones((2, 3))])
def test_arrays_of_another_kind_are_damage(store, vectors):
  write(store.path, {**NOTES, **RECORDS}, vectors)
  with pytest.raises(FailureError, match='is damaged'):
    store.read_arrays(SHARD)


def test_a_pipe_is_not_waited_for(store):
  os.mkfifo(store.path / SHARD.file_name)
  with pytest.raises(FailureError, match='a pipe or a device'):
    store.read_notes(SHARD)


def test_a_full_disk_leaves_no_half_shard(small_disk):
  store = ShardStore(small_disk, Notes, {'vectors': (np.float32, 2)})
  with pytest.raises(FailureError, match=r'could not be written: .*no space'):
    store.write(
      SHARD, Notes(**NOTES), {'vectors': np.ones((2, 2**19), np.float32)}
    )
  assert os.listdir(small_disk) == []


@pytest.mark.parametrize('images, texts', [(0, 0), (1, 0), (4, 4), (9, 13)])
def test_shards_cover_every_record_once(images, texts):
  shards = make_shards('image', images, 4)
  shards += make_shards('text', texts, 4, first=len(shards))
  assert [shard.number for shard in shards] == list(range(len(shards)))
  for kind, count in (('image', images), ('text', texts)):
    records = [
      i for shard in shards if shard.kind == kind
      for i in range(shard.start, shard.stop)
    ]  # fmt: skip
    assert records == list(range(count))
  assert all(0 < len(shard) <= 4 for shard in shards)
