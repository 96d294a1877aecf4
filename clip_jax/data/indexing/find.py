"""Finds the index of the shards that a SPEC names, or makes one in memory."""

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence

from clip_jax.data import storage
from clip_jax.data.indexing.manifest import FOLDER_NAME, read_index
from clip_jax.data.indexing.tar_index import TarIndex, index_in_memory
from clip_jax.data.sources import Spec
from clip_jax.errors import MissingFileError, UsageError, plural, quote_first

# Shards up to here are read at opening where they have no index, by each
# process: some ten seconds of headers on a disk, or a short download.
MAX_LOCAL_BYTES = 2 * 2**30
MAX_REMOTE_BYTES = 256 * 2**20


def open_index(spec: Spec) -> tuple[TarIndex, tuple[str, ...]]:
  """Returns the index of the shards of a SPEC, and lines for its user.

  A stored index serves if it has all of the shards, in their present sizes.

  Raises:
    UsageError: nothing matches, or the shards are too many to be read now; the
      message has the command that makes the index.
    FailureError: a shard or an index cannot be read.
  """
  index = stored_in(spec)
  if index is not None:
    other, newer = index.changed()
    if other:
      raise spec.error(_describe_changed(other))
    return index, _notices(spec, newer)
  root, names, notices = find_shards(spec)
  stale = ''
  if beside := best_beside(root, names):
    folder, index = beside
    other, newer = index.changed()
    if not other:
      return index, (*notices, *_notices(spec, newer))
    stale = f' (that in {folder}: {_describe_changed(other)})'
  limit = MAX_REMOTE_BYTES if storage.is_remote(root) else MAX_LOCAL_BYTES
  sizes = _sizes_up_to(limit, [storage.join(root, name) for name in names])
  command = f'clip-jax data index {shlex.quote(spec.text)}'
  if sum(sizes) > limit:
    raise spec.error(
      f'{plural(len(names), "shard")} of over {limit / 1e9:.1f} GB without an '
      f'index{stale}; this command makes it, once: {command}'
    )
  notice = (
    f'data {spec.text!r}: an index of {plural(len(names), "shard")} is made '
    f'in memory{stale}; to keep one: {command}'
  )
  return index_in_memory(root, names), (*notices, notice)


def location_of(spec: Spec) -> str:
  """Returns the pattern or folder of a SPEC; a split is a sub-folder."""
  location = storage.local_or_url(spec.location)
  return storage.join(location, spec.split) if spec.split else location


def stored_in(spec: Spec) -> TarIndex | None:
  """Returns the index in the folder that a SPEC names, if it names one."""
  location = location_of(spec)
  # A folder in a store is asked for, unless it is more likely a pattern.
  if storage.is_remote(location) and any(x in location for x in '*?{['):
    return None
  return read_index(location) if storage.is_folder(location) else None


def find_shards(spec: Spec) -> tuple[str, list[str], tuple[str, ...]]:
  """Returns the folder of the shards of a SPEC, their names in it, and notices.

  Where a pattern matches tar files and others, the others are left out.

  Raises:
    UsageError: nothing matches.
  """
  pattern = location_of(spec)
  try:
    paths = storage.expand(pattern)
    if paths == [pattern] and storage.is_folder(pattern):
      paths = storage.find_in(pattern, '*.tar')
      if not paths:
        raise UsageError(f'{storage.join(pattern, "*.tar")} matches no file.')
  except UsageError as error:
    raise spec.error(f'{str(error).rstrip(".")}{spec.about_split()}') from error
  tars = [path for path in paths if path.lower().endswith('.tar')]
  notices = ()
  if 0 < len(tars) < len(paths):
    others = [path for path in paths if not path.lower().endswith('.tar')]
    notices = (
      f'data {spec.text!r}: {plural(len(others), "file")} of other names than '
      f'.tar left out ({quote_first(others, len(others))})',
    )
    paths = tars
  root = storage.common_folder(paths)
  return root, _relative_names(root, paths), notices


def best_beside(root: str, names: Sequence[str]) -> tuple[str, TarIndex] | None:
  """Returns an index beside some shards, and its folder, or None.

  Of several it is one of the shards as they are now, if there is such.
  """
  indexes = list(_stored_beside(root, names))
  if len(indexes) < 2:
    return indexes[0] if indexes else None
  return min(indexes, key=lambda x: tuple(map(len, x[1].changed())))


def _stored_beside(
  root: str, names: Sequence[str]
) -> Iterator[tuple[str, TarIndex]]:
  """Yields the indexes that have all of some shards, with their folders.

  They are looked for beside the shards, and one folder above.
  """
  paths = [storage.join(root, name) for name in names]
  for parent in dict.fromkeys((root, storage.folder_of(root))):
    folder = storage.join(parent, FOLDER_NAME)
    if not storage.is_folder(folder):
      continue
    for name in storage.list_folder(folder):
      own = storage.join(folder, name.rstrip('/'))
      index = read_index(own) if name.endswith('/') else None
      if index is not None:
        with contextlib.suppress(KeyError):
          yield own, index.selected(_relative_names(index.root, paths))


def _sizes_up_to(limit: int, paths: Sequence[str]) -> list[int]:
  """Returns the sizes of files, until they are over a limit together."""
  sizes: list[int] = []
  for path in paths:
    try:
      sizes.append(storage.size(path))
    except MissingFileError as error:
      raise UsageError(str(error)) from error
    if sum(sizes) > limit:
      break
  return sizes


def _describe_changed(names: Sequence[str]) -> str:
  return (
    f'{plural(len(names), "shard")} missing or of another size than when '
    f'indexed ({quote_first(names, len(names))}); clip-jax data index makes '
    'the index anew'
  )


def _notices(spec: Spec, newer: Sequence[str]) -> tuple[str, ...]:
  if not newer:
    return ()
  return (
    f'data {spec.text!r}: {plural(len(newer), "shard")} written since they '
    f'were indexed, in the same size ({quote_first(newer, len(newer))}): if '
    'they are no copies, make the index again; clip-jax data index --verify '
    'tells',
  )


def _relative_names(root: str, paths: Sequence[str]) -> list[str]:
  """Returns paths relative to the folder that they are in."""
  if storage.is_remote(root):
    return [path.removeprefix(f'{root}/') for path in paths]
  return [os.path.relpath(os.path.abspath(path), root) for path in paths]
