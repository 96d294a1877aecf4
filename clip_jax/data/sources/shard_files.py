"""Lists the files of a data set that is kept in shards, and names them."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError, first_reasons
from clip_jax.data.sources import Spec
from clip_jax.errors import UsageError, plural

T = TypeVar('T')

_THREADS = 16  # that look into files at opening
_MAX_DAMAGED = 100  # files that are left out, before the data are refused
# train-00000-of-00002.parquet, NAME-train.arrow, train/0000.parquet
_SPLIT = r'(?:^|[^a-z0-9])({})(?:[^a-z0-9]|$)'
_SPLITS = ('train', 'validation', 'valid', 'val', 'dev', 'test')


def list_files(spec: Spec, suffix: str) -> list[str]:
  """Returns the files that a SPEC names, sorted; `#split` is a sub-folder.

  Of a folder these are all below it whose names contain the suffix.

  Raises:
    UsageError: there are none.
  """
  location = spec.location
  if spec.split:
    location = storage.join(location, spec.split)
  try:
    paths = storage.expand(location)
  except UsageError as error:
    raise spec.error(f'{str(error).rstrip(".")}{spec.about_split()}') from error
  files: list[str] = []
  for path in paths:
    if storage.is_folder(path):
      files += files_below(path, suffix)
    else:
      files.append(path)
  if not files:
    raise spec.error(f'no {suffix} file in {location}')
  return files


def files_below(folder: str, suffix: str, depth: int = 8) -> list[str]:
  """Returns the paths of the files below a folder with a suffix.

  Names that begin with '.' or '_' are other programs' own.
  """
  paths = []
  for name in storage.list_folder(folder):
    if name.startswith(('.', '_')):
      continue
    path = storage.join(folder, name.rstrip('/'))
    if not name.endswith('/'):
      paths += [path] if suffix in name.lower() else []
    elif depth:
      paths += files_below(path, suffix, depth - 1)
  return paths


def split_of(name: str, wanted: str = '') -> str:
  """Returns the split that a file's name or its folders' tell, or ''.

  Args:
    name: below the folder of the data set.
    wanted: a split that is looked for before the usual ones.
  """
  for split in (wanted, *_SPLITS) if wanted else _SPLITS:
    pattern = _SPLIT.format(re.escape(split.lower()))
    if re.search(pattern, name.lower()):
      return split
  return ''


def read_each(
  spec: Spec, paths: Sequence[str], read: Callable[[str], T]
) -> tuple[dict[str, T], tuple[str, ...]]:
  """Reads something of each file, such as its number of records, in threads.

  Args:
    read: raises CorruptImageError for a damaged file.
  Returns:
    What was read, by path in the order of `paths`, and a line about files that
    are left out because they are damaged.
  Raises:
    UsageError: no file can be read, or too many cannot.
  """

  def try_to_read(path: str) -> T | CorruptImageError:
    try:
      return read(path)
    except CorruptImageError as error:
      return error

  if len(paths) == 1:
    results = [try_to_read(paths[0])]
  else:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix='opening') as pool:
      results = list(pool.map(try_to_read, paths))
  values: dict[str, T] = {}
  damaged: dict[str, str] = {}
  for path, result in zip(paths, results, strict=True):
    if isinstance(result, CorruptImageError):
      damaged[path] = str(result)
    else:
      values[path] = result
  if not values:
    refuse_all(spec, damaged)
  if len(damaged) > _MAX_DAMAGED:
    raise spec.error(
      f'over {_MAX_DAMAGED} files cannot be read{first_reasons(damaged)}'
    )
  if not damaged:
    return values, ()
  return values, (
    f'left out {plural(len(damaged), "file")} that cannot be read'
    f'{first_reasons(damaged)}',
  )


def refuse_all(spec: Spec, reasons: Mapping[str, str]) -> NoReturn:
  """Refuses data of which no file can be read.

  Args:
    reasons: by path.
  """
  path, reason = next(iter(reasons.items()))
  raise spec.error(f'no file can be read; {path}: {reason}')


def short_names(paths: Sequence[str]) -> list[str]:
  """Returns the files' names, with the folders in which they differ."""
  parts = [path.split('/') for path in paths]
  first, last = min(parts), max(parts)  # all others lie between
  common = 0
  while common < min(len(first), len(last)) - 1:
    if first[common] != last[common]:
      break
    common += 1
  return ['/'.join(names[common:]) for names in parts]
