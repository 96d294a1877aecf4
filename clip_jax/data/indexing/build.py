"""Makes the index of tar shards, in parallel, in steps that need no repetition.

Each shard is read once, from its first byte to its last, and leaves a part: its
entries and the checksum of its content. When all parts are there they become
one file, and the manifest names it. A process can be killed at any moment: the
same command goes on from the parts, and of an index that is there it reads only
the shards that are new or changed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_jax.data import storage
from clip_jax.data.indexing.find import (
  best_beside,
  find_shards,
  location_of,
  stored_in,
)
from clip_jax.data.indexing.manifest import (
  FOLDER_NAME,
  MANIFEST,
  read_index,
  to_manifest,
)
from clip_jax.data.indexing.parts import (
  ShardJob,
  make_parts,
  read_part,
  shard_job,
)
from clip_jax.data.indexing.selection import Selection
from clip_jax.data.indexing.tar_index import (
  EntryFile,
  IndexedShard,
  KindTable,
  TarIndex,
  versions_of,
)
from clip_jax.data.indexing.tar_shard import PROBLEM_KIND, Entries
from clip_jax.data.sources import Spec
from clip_jax.errors import (
  FailureError,
  UsageError,
  plural,
  reason_of,
)
from clip_jax.files import holding_lock
from clip_jax.progress import Progress, no_progress

PARTS = 'parts'


class Summary(NamedTuple):
  """The result of `build_index`.

  Attributes:
    folder: of the index.
    index: as it is now.
    read: the number of shards that were read, where others were known.
    notices: lines for the user.
  """

  folder: str
  index: TarIndex
  read: int
  notices: tuple[str, ...]


def build_index(
  spec: Spec,
  folder: str | None = None,
  *,
  workers: int = 1,
  checksum: bool = True,
  max_corrupt: int = 100,
  progress: Progress = no_progress,
) -> Summary:
  """Makes the index of the shards of a SPEC, or brings one up to date.

  Args:
    folder: where it is written; None is beside the shards, where the SPEC finds
      it.
    workers: processes that read shards.
    checksum: whether shards are read in full, for a checksum of their content;
      otherwise only their headers are.
    max_corrupt: the number of damaged members that is accepted.
  Raises:
    UsageError: nothing matches, or another process makes this index.
    FailureError: a shard cannot be read, the index cannot be written, or over
      `max_corrupt` members are damaged; what was read is kept for the next
      call.
  """
  root, names, notices = find_shards(spec)
  written_root = root if folder else '../..'
  folder = (
    storage.local_or_url(folder) if folder else default_folder(spec, root)
  )
  with _locked(folder):
    before = read_index(folder)
    paths = [storage.join(root, name) for name in names]
    versions = dict(zip(names, versions_of(paths), strict=True))
    known = _known_shards(before, root, versions, checksum)
    if before is not None and list(known) == before.names == names:
      check_problems(before, max_corrupt)
      return Summary(folder, before, 0, notices)
    parts = storage.join(folder, PARTS)
    jobs = {
      name: shard_job(storage.join(root, name), version, parts, checksum)
      for name, version in versions.items()
      if name not in known
    }
    make_parts(list(jobs.values()), parts, workers, progress)
    path = storage.join(folder, f'entries-{_identity(names, jobs, known)}.bin')
    with storage.writing(path) as temporary:
      contents = _contents(names, jobs, known, before)
      index = _write_entries(temporary, root, contents)
      check_problems(index, max_corrupt)
    manifest = to_manifest(index, written_root, os.path.basename(path))
    # Names that are no UTF-8 are escaped.
    content = json.dumps(manifest).encode()
    storage.write_bytes(storage.join(folder, MANIFEST), content)
    _remove_leftovers(folder, os.path.basename(path))
  index = read_index(folder)
  assert index is not None
  return Summary(folder, index, len(jobs), notices)


def verify_index(
  index: TarIndex, *, workers: int = 1, progress: Progress = no_progress
) -> list[str]:
  """Reads all shards of an index again, and changes nothing.

  Returns:
    The names of those whose content is not what was indexed.
  Raises:
    MissingFileError, FailureError: a shard cannot be read.
  """
  differing = []
  with tempfile.TemporaryDirectory(prefix='clip_jax.') as parts:
    paths = [index.path(number) for number in range(len(index.names))]
    jobs = [
      shard_job(path, version, parts, bool(shard.sha256))
      for path, version, shard in zip(
        paths, versions_of(paths), index.shards, strict=True
      )
    ]
    make_parts(jobs, parts, workers, progress)
    for number, (shard, job) in enumerate(zip(index.shards, jobs, strict=True)):
      entries, read = read_part(job.part)
      table = KindTable(index.kinds)
      rows, _ = table.merge(entries)
      same_rows = np.array_equal(rows, index.shard_entries(number))
      if not same_rows or read['sha256'] != shard.sha256:
        differing.append(shard.name)
  return differing


def existing_index(spec: Spec, folder: str | None) -> tuple[str, TarIndex]:
  """Returns the index of a SPEC, and the folder that it is in.

  Args:
    folder: the index, where it does not lie beside the shards.
  Raises:
    UsageError: there is none.
  """
  folder = storage.local_or_url(folder) if folder else None
  index = read_index(folder) if folder else stored_in(spec)
  if index is not None:
    return folder or location_of(spec), index
  if not folder:
    root, names, _ = find_shards(spec)
    if beside := best_beside(root, names):
      return beside
  where = folder or 'beside the shards'
  raise spec.error(f'no index {where}; without --verify it is made')


def default_folder(spec: Spec, root: str) -> str:
  """Returns where the index of a SPEC lies beside its shards."""
  base = location_of(spec).rstrip('/').rpartition('/')[2].removesuffix('.tar')
  name = re.sub(r'[^A-Za-z0-9.-]+', '_', base).strip('_.') or 'shards'
  return storage.join(root, FOLDER_NAME, name[:100])


def _known_shards(
  before: TarIndex | None,
  root: str,
  versions: Mapping[str, str],
  checksum: bool,
) -> dict[str, str]:
  """Returns the versions of shards that an index has as they are, by name."""
  if before is None or before.root != root:
    return {}
  shards = {shard.name: shard for shard in before.shards}
  return {
    name: version
    for name, version in versions.items()
    if (shard := shards.get(name)) is not None
    and shard.version == version
    and (shard.sha256 or not checksum)
  }


def _contents(
  names: Sequence[str],
  jobs: Mapping[str, ShardJob],
  known: Mapping[str, str],
  before: TarIndex | None,
) -> Iterator[tuple[IndexedShard, Entries]]:
  """Yields what is known of each shard, in order; its counts are left open."""
  numbers = {x: i for i, x in enumerate(before.names)} if before else {}
  for name in names:
    if name in known:
      assert before is not None
      rows = before.shard_entries(numbers[name])
      yield before.shards[numbers[name]], Entries(rows, before.kinds)
    else:
      entries, notes = read_part(jobs[name].part)
      marks = (notes[x] for x in ('size', 'version', 'sha256'))
      yield IndexedShard(name, *marks, counts={}), entries


def _identity(
  names: Sequence[str], jobs: Mapping[str, ShardJob], known: Mapping[str, str]
) -> str:
  """Returns a digest of the shards and their versions."""
  digest = hashlib.sha256()
  for name in names:
    version = jobs[name].version if name in jobs else known[name]
    digest.update(f'{name}\0{version}\0'.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()[:16]


def _write_entries(
  path: Path, root: str, contents: Iterable[tuple[IndexedShard, Entries]]
) -> TarIndex:
  """Writes the entries of all shards, and returns the index of them."""
  kinds, shards = KindTable(), list[IndexedShard]()
  with open(path, 'wb') as file:
    for shard, entries in contents:
      rows, counts = kinds.merge(entries)
      file.write(rows.tobytes())
      shards.append(dataclasses.replace(shard, counts=counts))
  return TarIndex(root, shards, kinds.kinds, EntryFile(os.fspath(path)))


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
  """Keeps other processes of this machine out of the folder of an index.

  Raises:
    UsageError: another makes this index, or the folder has other files.
    FailureError: the folder cannot be written.
  """
  if storage.is_remote(folder):
    yield
    return
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise FailureError(
      f'{folder}: {reason_of(error)}; --out=DIR puts the index elsewhere.'
    ) from error
  for name in storage.list_folder(folder):
    if not re.fullmatch(r'index\.json|entries-\w+\.bin|parts/|\..*', name):
      raise UsageError(
        f'{folder} has other files, such as {name}: name a folder for the '
        'index alone, by --out=DIR.'
      )
  held = UsageError(
    f'another process makes the index in {folder}: wait for it.'
  )
  with holding_lock(os.path.join(folder, '.lock'), held):
    yield


def _remove_leftovers(folder: str, entries: str) -> None:
  """Removes the parts, and the entries of an index that was replaced."""
  for name in storage.list_folder(folder):
    if name.startswith('entries-') and name != entries:
      storage.remove(storage.join(folder, name))
  parts = storage.join(folder, PARTS)
  if storage.is_folder(parts):
    for name in storage.list_folder(parts):
      if name.endswith(('.npz', '.part')):
        storage.remove(storage.join(parts, name))
    if not storage.is_remote(parts):
      with contextlib.suppress(OSError):
        os.rmdir(parts)


def check_problems(index: TarIndex, max_corrupt: int) -> None:
  """Refuses shards with too many damaged members.

  Raises:
    FailureError: it names the first.
  """
  problems = Selection(index, range(PROBLEM_KIND, 256))
  if len(problems) > max_corrupt:
    first = '; '.join(describe_problems(index, 3))
    raise FailureError(
      f'{plural(len(problems), "damaged member")}, over --max_corrupt='
      f'{max_corrupt}: {first}. What was read is kept.'
    )


def describe_problems(index: TarIndex, most: int) -> Iterator[str]:
  """Yields the id of damaged members, and what is wrong with each."""
  problems = Selection(index, range(PROBLEM_KIND, 256))
  for number in range(min(most, len(problems))):
    record = problems[number]
    yield f'{index.id(record)}: {index.problem(record)}'
