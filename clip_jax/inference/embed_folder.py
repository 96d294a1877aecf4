"""The folder OUT.parts, in which the shards of an embedding job wait.

```
OUT.parts/
  job.json       the job's identity, and how its records are divided
  00000000.npz   one a shard; see `clip_jax.inference.shards`
  lock           held while the folder is begun, and while shards are joined
  0-of-4.lock    held by the process that is worker 0 of 4
```

A process can be killed at any moment. What it leaves is this folder with some
shards in it; the same command then makes the others. Locks are the system's and
end with their process.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, holding_lock, open_lock, read_fields
from clip_jax.inference.embeddings_table import DIGEST_BYTES, Rows
from clip_jax.inference.shards import Shard, ShardStore, make_shards

VERSION = 2  # of the files in the folder

# How messages name the fields of a job's identity, which have to agree.
_MEANINGS = {
  'version': "the version of the parts' format",
  'model': 'the model',
  'batch_stats': "the hash of the model's batch statistics",
  'config': "the model's shape, activation or number of heads",
  'preprocessing': 'the preprocessing',
  'tokenizer': 'the tokenizer',
  'dtype': 'the dtype',
  'images': '--images',
  'captions': '--captions',
  'records': 'the number of records',
  'texts': '--texts',
  'texts_hash': 'the content of --texts',
  'rule': 'which captions are drawn (data.filter, data.templates, …)',
  'views': 'data.views',
  'of_views': 'what the views depend on (data.view_seed, data.augment, …)',
}
# Jobs that earlier versions began do not say these.
_ADDED = ('batch_stats', 'config')


def differences(
  new: dict[str, Any],
  old: dict[str, Any],
  fields: Iterable[str] = tuple(_MEANINGS),
) -> list[str]:
  """Returns, in a few words each, the fields in which two jobs differ.

  Args:
    new, old: their identities, as JSON has them.
    fields: that are compared; those that neither job has are alike.
  """
  described = []
  for field in fields:
    meaning, ours, theirs = _MEANINGS[field], new.get(field), old.get(field)
    if ours == theirs or (field in _ADDED and field not in old):
      continue
    if field == 'model':
      ours, theirs = _describe_model(new), _describe_model(old)
    if field in (
      'config',
      'texts_hash',
      'tokenizer',
      'preprocessing',
      'rule',
      'of_views',
    ):
      described.append(f'{meaning} is different')
    else:
      described.append(f'{meaning} is {ours}, theirs is {theirs}')
  return described


def refuse_other_job(
  folder: Path, content: str, new: dict[str, Any], old: dict[str, Any]
) -> None:
  """Refuses a folder that another job has begun.

  Args:
    content: what the folder holds, for the message.
    new, old: as in `differences`.
  Raises:
    UsageError: the jobs differ; the message says in what.
  """
  different = differences(new, old)
  if different:
    raise UsageError(
      f'{folder} holds {content} of another job: {"; ".join(different)}. '
      'Remove that folder, or name another --out.'
    )


def _describe_model(identity: dict[str, Any]) -> str:
  step = identity.get('step')
  after = f' at step {step:,}' if isinstance(step, int) else ''
  return (
    f'{identity.get("origin") or "of unknown origin"}{after} '
    f'({str(identity.get("model"))[:8]})'
  )


@dataclasses.dataclass(frozen=True)
class Division:
  """The division of a job's records into shards, the images' first.

  Attributes:
    images, texts: how many records there are.
    part_rows: records a shard; the last of each kind may have fewer.
  """

  images: int
  texts: int
  part_rows: int

  def shards(self) -> list[Shard]:
    """Returns all shards, in the order of their rows."""
    images = make_shards('image', self.images, self.part_rows)
    texts = make_shards('text', self.texts, self.part_rows, len(images))
    return images + texts


@dataclasses.dataclass(frozen=True)
class RowNotes:
  """The fields of a shard beside its vectors.

  Attributes:
    ids, captions: of its rows.
    digests: of what they were made of, one after another, in hexadecimal.
    corrupt: id to reason, of the records without a row.
    truncated: how many texts were truncated to the model's context length.
  """

  ids: list[str]
  captions: list[str]
  digests: str
  corrupt: dict[str, str]
  truncated: int

  def digest_array(self) -> UInt8[np.ndarray, 'N 16']:
    """Returns the digests of the rows.

    Raises:
      ValueError: they are none.
    """
    values = np.frombuffer(bytes.fromhex(self.digests), np.uint8)
    return values.reshape(-1, DIGEST_BYTES)


class EmbedFolder:
  """The shards of one embedding job on disk.

  Attributes:
    path: the folder.
    shards: all of the job, as the process that began it divided it.
    identity: the job's, as that process had it.
    was_joined: whether a process was killed after it had joined the shards and
      before all of them were removed.
  """

  def __init__(self, out: Path):
    """Touches nothing yet.

    Args:
      out: the file that the shards will become. Its suffix is not part of the
        folder's name: the shards may be joined in either format.
    """
    self.path = out.with_suffix('.parts')
    self.shards: list[Shard] = []
    self.identity: dict[str, Any] = {}
    self.was_joined = False
    self._trash = out.with_suffix('.parts.done')
    self._store = ShardStore(
      self.path, RowNotes, {'vectors': (np.float32, 2)}, manifest='job.json'
    )

  @contextlib.contextmanager
  def begin(self, identity: dict[str, Any], division: Division) -> Iterator:
    """Begins the folder, or goes on with the one that is there.

    Leaving it by an error removes it if it has no shard.

    Raises:
      UsageError: it is another job's.
    """
    self.was_joined = self._trash.exists()
    self.path.mkdir(exist_ok=True)
    with self._lock():
      self._claim(identity, division)
    try:
      yield
    finally:
      self._remove_if_empty()
      shutil.rmtree(self._trash, ignore_errors=True)

  @contextlib.contextmanager
  def lock_worker(self, index: int, count: int) -> Iterator[None]:
    """Keeps other processes from being the same worker.

    Raises:
      UsageError: one is.
    """
    which = f'--shard={index}/{count} of ' if count > 1 else ''
    held = UsageError(
      f'another process works on {which}{self.path}: wait for it, or name '
      'another --out.'
    )
    with holding_lock(self.path / f'{index}-of-{count}.lock', held):
      yield

  @contextlib.contextmanager
  def lock_for_joining(self) -> Iterator[bool]:
    """Lets one process at a time join the shards.

    Yields:
      Whether they are still there; if not, another process has joined them.
    """
    with contextlib.ExitStack() as stack:
      there = False
      with contextlib.suppress(FileNotFoundError):
        stack.enter_context(self._lock())
        there = self._store.read_manifest() is not None
      yield there

  def has(self, shard: Shard) -> bool:
    """Returns whether a shard is there."""
    return self._store.has(shard)

  def done(self) -> list[Shard]:
    """Returns the shards that are there, in order."""
    return [shard for shard in self.shards if self.has(shard)]

  def write(self, shard: Shard, notes: RowNotes, vectors: np.ndarray) -> None:
    """Writes a shard; see `ShardStore.write`."""
    self._store.write(shard, notes, {'vectors': vectors})

  def read_notes(self, shard: Shard) -> RowNotes:
    """Reads what a shard says beside its vectors.

    Raises:
      FailureError: it is damaged; the message says what to remove.
    """
    notes = self._store.read_notes(shard)
    try:
      digests = len(notes.digest_array())
    except ValueError as error:
      raise self._store.damaged(
        shard, 'its digests are no hexadecimal ones'
      ) from error
    if not len(notes.ids) == len(notes.captions) == digests:
      raise self._store.damaged(shard, 'its columns are not of one length')
    return notes

  def read_rows(self, shard: Shard) -> Rows:
    """Reads a shard's rows.

    Raises:
      FailureError: as `read_notes`.
    """
    notes = self.read_notes(shard)
    vectors = self._store.read_arrays(shard)['vectors']
    if len(vectors) != len(notes.ids):
      raise self._store.damaged(shard, 'it has not a vector for each id')
    kinds = [shard.kind] * len(notes.ids)
    digests = notes.digest_array()
    return Rows(notes.ids, kinds, notes.captions, vectors, digests)

  def read_dims(self, shard: Shard) -> int:
    """Reads E, the width of a shard's vectors."""
    return self._store.read_arrays(shard)['vectors'].shape[1]

  def remove(self) -> None:
    """Removes the folder; it disappears at once, its files thereafter."""
    shutil.rmtree(self._trash, ignore_errors=True)  # of an earlier job
    os.rename(self.path, self._trash)
    shutil.rmtree(self._trash, ignore_errors=True)

  def _claim(self, identity: dict[str, Any], division: Division) -> None:
    path = self.path / 'job.json'
    job = self._store.read_manifest()
    if job is None:
      self._refuse_other_files()
      self._store.write_manifest(
        {'identity': identity, 'plan': dataclasses.asdict(division)}
      )
    else:
      job = check_fields(path, job, {'identity': dict, 'plan': dict})
      refuse_other_job(self.path, 'the parts', identity, job['identity'])
      old = read_fields(path, job['plan'], Division)
      # The folder keeps the shard size that it was begun with.
      same = dataclasses.replace(old, part_rows=division.part_rows) == division
      if old.part_rows < 1 or not same:
        raise FailureError(
          f'{path} is damaged: its plan is not of these records. Remove '
          f'{self.path}, and the same command begins again.'
        )
      division, identity = old, job['identity']
    self.shards, self.identity = division.shards(), identity

  def _refuse_other_files(self) -> None:
    for name in os.listdir(self.path):
      if not name.endswith(('.lock', '.tmp', '.part')) and name != 'lock':
        raise UsageError(
          f'{self.path} is in the way: it holds {name!r} and no job.json. Move '
          'it, or name another --out.'
        )

  def _lock(self) -> contextlib.AbstractContextManager[None]:
    return holding_lock(self.path / 'lock')

  def _remove_if_empty(self) -> None:
    """Removes the folder, unless work or another process is still in it."""
    with contextlib.suppress(OSError), self._lock():
      names = os.listdir(self.path)
      if not any(name.endswith('.npz') for name in names) and not any(
        _is_held(self.path / name) for name in names if '-of-' in name
      ):
        self.remove()


def _is_held(lock: Path) -> bool:
  with open_lock(lock) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False
