"""Reads shards in parallel; each leaves a part, which is not made twice."""

import contextlib
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.data import storage
from clip_jax.data.indexing.tar_index import scan_shard
from clip_jax.data.indexing.tar_shard import ENTRY, Entries
from clip_jax.data.prepare import local_engine
from clip_jax.errors import FailureError, MissingFileError, UsageError
from clip_jax.progress import Progress

_MAX_PART_BYTES = 2**33


@dataclasses.dataclass(frozen=True)
class ShardJob:
  """The reading of a shard, as a worker process does it.

  Attributes:
    path: of the shard.
    version: of its content, when the work began.
    part: the path of the file to write.
    checksum: whether all of it is read, for its SHA-256.
  """

  path: str
  version: str
  part: str
  checksum: bool

  @property
  def name(self) -> str:
    """Names the shard in errors."""
    return self.path

  def run(self) -> str:
    """Reads the shard and writes its part.

    Returns:
      '', or why it failed.
    """
    try:
      self._write_part()
    except (FailureError, UsageError) as error:
      return str(error)
    except (OSError, MemoryError) as error:
      return f'{self.path}: {error or "there is not enough memory"}.'
    return ''

  def _write_part(self) -> None:
    digest = ''
    if self.checksum:  # first: then the headers come from the system's cache
      with storage.open_file(self.path) as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    entries = scan_shard(self.path)
    if storage.version(self.path) != self.version:
      raise FailureError(f'{self.path} changes while it is read.')
    notes = {
      'size': storage.size(self.path),
      'version': self.version,
      'sha256': digest,
      'kinds': entries.kinds,
    }
    text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    with storage.writing(self.part) as path, open(path, 'wb') as file:
      np.savez(file, allow_pickle=False, rows=entries.rows, notes=text)


def make_parts(
  jobs: Sequence[ShardJob], parts: str, workers: int, progress: Progress
) -> None:
  """Makes the parts of some shards, but for those that are there.

  Raises:
    MissingFileError, FailureError: a shard cannot be read, or a part not
      written.
  """
  there = set[str]()
  if storage.is_folder(parts):
    there = {storage.join(parts, name) for name in storage.list_folder(parts)}
  left = [job for job in jobs if job.part not in there]
  total, done = len(jobs), len(jobs) - len(left)
  if not left:
    return
  with contextlib.closing(local_engine.run(left, workers)) as outcomes:
    for outcome in progress(outcomes, total, 'shards', done=done):
      if outcome.reason:
        raise FailureError(outcome.reason)


def shard_job(path: str, version: str, parts: str, checksum: bool) -> ShardJob:
  """Returns the job of a shard.

  Raises:
    MissingFileError: there is none, as its version '' says.
  """
  if not version:
    raise MissingFileError(f'{path}: no such file.')
  text = '\0'.join((path, version, str(checksum)))
  name = hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()
  part = storage.join(parts, f'{name[:32]}.npz')
  return ShardJob(path, version, part, checksum)


def read_part(path: str) -> tuple[Entries, dict[str, Any]]:
  """Returns the entries of a part and its notes.

  Raises:
    FailureError: it is damaged.
  """
  try:
    with np.load(
      io.BytesIO(storage.read_all(path, _MAX_PART_BYTES)), allow_pickle=False
    ) as part:
      notes = json.loads(part['notes'].tobytes())
      rows = part['rows']
    kinds = [tuple(kind) for kind in notes['kinds']]
    if rows.dtype != ENTRY:
      raise ValueError('another dtype')
  except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
    raise FailureError(
      f'{path}: a damaged part of an index ({error}): remove it, and the same '
      'command makes it again.'
    ) from error
  return Entries(rows, kinds), notes
