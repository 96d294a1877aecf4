"""Keeps an index of tar shards in a folder.

```
FOLDER/
  index.json         the shards, and how many records of which kind each has
  entries-HASH.bin   an entry of nine bytes for each record (`tar_shard.ENTRY`)
```

It lies beside the shards, in clip_jax_index/NAME, or where its maker put it.
"""

import os
from typing import Any

from clip_jax.data import storage
from clip_jax.data.indexing.tar_index import EntryFile, IndexedShard, TarIndex
from clip_jax.data.indexing.tar_shard import ENTRY, PROBLEM_KIND, Suffixes
from clip_jax.errors import FailureError
from clip_jax.files import check_fields, parse_json

FOLDER_NAME = 'clip_jax_index'
MANIFEST = 'index.json'
FORMAT = 1

_MAX_MANIFEST_BYTES = 2**31


def to_manifest(index: TarIndex, root: str, entries: str) -> dict[str, Any]:
  """Returns what `read_index` reads, as JSON has it.

  Args:
    root: of the shards, relative to the folder of the index where it may be.
    entries: the name of the file of the entries.
  """
  shards = index.shards
  return {
    'format': FORMAT,
    'root': root,
    'entries': entries,
    'kinds': [list(kind) for kind in index.kinds],
    'shards': {
      'name': index.names,
      'size': [shard.size for shard in shards],
      'version': [shard.version for shard in shards],
      'sha256': [shard.sha256 for shard in shards],
    },
    # By kind, a number for each shard.
    'counts': {
      str(kind): index.counts([kind]).tolist() for kind in index.totals()
    },
  }


def read_index(folder: str) -> TarIndex | None:
  """Opens the index in a folder; returns None where there is none.

  Raises:
    FailureError: it is damaged, or of another version of this program.
  """
  path = storage.join(folder, MANIFEST)
  if not storage.exists(path):
    return None
  content = parse_json(storage.read_all(path, _MAX_MANIFEST_BYTES), path)
  fields = {
    'format': int, 'root': str, 'entries': str, 'kinds': list,
    'shards': dict, 'counts': dict,
  }  # fmt: skip
  check_fields(path, content, fields)
  if content['format'] != FORMAT:
    raise FailureError(
      f'{path}: an index of format {content["format"]}, and this program '
      f'reads {FORMAT}: remove the folder, and make it again.'
    )
  try:
    shards, kinds = _parse(content)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise _damaged(folder, repr(error)) from error
  entries = storage.join(folder, os.path.basename(content['entries']))
  root = _resolve(folder, content['root'])
  index = TarIndex(root, shards, kinds, EntryFile(entries))
  if storage.size(entries) != len(index) * ENTRY.itemsize:
    raise _damaged(folder, f'{entries} has another size')
  return index


def _resolve(folder: str, root: str) -> str:
  """Returns the folder of the shards, which may be relative to the index's."""
  if storage.is_remote(folder) and not storage.is_remote(root):
    parts = folder.rstrip('/').split('/')
    up = [part for part in root.split('/') if part == '..']
    return '/'.join(parts[: len(parts) - len(up)])
  if storage.is_remote(root):
    return root
  return os.path.abspath(os.path.join(folder, root))


def _parse(
  content: dict[str, Any],
) -> tuple[list[IndexedShard], list[Suffixes]]:
  """Returns the shards and kinds of a manifest.

  Raises:
    KeyError, TypeError, ValueError, AttributeError: it is damaged.
  """
  table = content['shards']
  counts: list[dict[int, int]] = [{} for _ in table['name']]
  for kind, numbers in content['counts'].items():
    if not 0 <= int(kind) < 256 or len(numbers) != len(counts):
      raise ValueError(f'counts of {kind}')
    for own, number in zip(counts, numbers, strict=True):
      if number < 0:
        raise ValueError(f'counts of {kind}')
      if number:
        own[int(kind)] = int(number)
  columns = (table[x] for x in ('name', 'size', 'version', 'sha256'))
  shards = [
    IndexedShard(str(name), int(size), str(version), str(sha256), own)
    for name, size, version, sha256, own in zip(*columns, counts, strict=True)
  ]
  kinds = [tuple(map(str, kind)) for kind in content['kinds']]
  if len(kinds) > PROBLEM_KIND:
    raise ValueError(f'{len(kinds)} kinds')
  return shards, kinds


def _damaged(folder: str, reason: str) -> FailureError:
  return FailureError(
    f'{folder}: a damaged index ({reason}): remove the folder, and make it '
    'again.'
  )
