"""Keeps blocks of remote files on the disk, up to a size, least used ones go.

CLIP_JAX_CACHE_DIR names the folder (by default `clip_jax/blocks` in
XDG_CACHE_HOME or ~/.cache) and CLIP_JAX_CACHE_GB its size in gigabytes (10; 0
keeps nothing). The processes of a machine share it: a block is a file of its
own, which appears whole, ends with a checksum, and may go at any time.
"""

import contextlib
import hashlib
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable

from clip_jax.errors import FailureError, UsageError, print_warnings, reason_of
from clip_jax.files import expand_path, holding_lock, replacing

FOLDER_VARIABLE = 'CLIP_JAX_CACHE_DIR'
SIZE_VARIABLE = 'CLIP_JAX_CACHE_GB'
# A JPEG of a random record needs one or two blocks; at 100 MB/s a block takes
# no longer than the request for it.
BLOCK_BYTES = 2**18
_DEFAULT_GB = 10.0
# A process looks at the whole folder once it has written this part of the
# size; then the oldest blocks go until this part is left.
_LOOK_AFTER = 1 / 64
_KEEP = 0.8
_TOUCH_AFTER = 60.0  # seconds; a block's time of use is no more exact
_CHECKSUM = 4  # bytes

_lock = threading.Lock()
_written: dict[str, int] = {}  # bytes by folder, since the last look
_refused: set[str] = set()  # folders of which a person was told


def read(
  key: str,
  file_bytes: int,
  start: int,
  end: int,
  fetch: Callable[[int, int], bytes],
) -> bytes:
  """Reads bytes [start, end) of a file; fetches the blocks that are not kept.

  Args:
    key: stands for the file and the version of its content.
    file_bytes: the size of the file.
    fetch: reads bytes [start, end) of the file where it is.
  """
  if start >= end:
    return b''
  limit = _limit()
  if not limit:
    return fetch(start, end)
  folder = _folder()
  first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
  blocks: dict[int, bytes | None] = {}
  for index in range(first, last):
    length = min(BLOCK_BYTES, file_bytes - index * BLOCK_BYTES)
    blocks[index] = _load(_path(folder, key, index), length)
  # Neighbours that are missing come in one request.
  for run in _runs([x for x, block in blocks.items() if block is None]):
    begin = run[0] * BLOCK_BYTES
    data = fetch(begin, min(file_bytes, (run[-1] + 1) * BLOCK_BYTES))
    for index in run:
      offset = index * BLOCK_BYTES - begin
      block = blocks[index] = data[offset : offset + BLOCK_BYTES]
      _store(folder, _path(folder, key, index), block, limit)
  data = b''.join(block for block in blocks.values() if block is not None)
  return data[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]


def whole_file(
  name: str, key: str, file_bytes: int, copy: Callable[[str], None]
) -> str:
  """Returns the path of a whole file that is kept; copies it where it is not.

  Args:
    name: of the file, for errors.
    key, file_bytes: as in `read`.
    copy: writes the file to a path.
  Raises:
    FailureError: the cache is too small, or cannot be written.
  """
  limit, folder = _limit(), _folder()
  if file_bytes > limit * _KEEP:
    raise FailureError(
      f'{name}: {file_bytes / 1e9:.2f} GB, of which a copy is read: '
      f'{SIZE_VARIABLE}={limit / 1e9:g} is too small for it.'
    )
  path = _path(folder, key, -1)
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # One process copies a file; the others wait for it.
    with holding_lock(os.path.join(folder, f'copying.{path[-2:]}')):
      if os.path.exists(path) and os.path.getsize(path) == file_bytes:
        os.utime(path)
        return path
      with replacing(path) as temporary:
        copy(os.fspath(temporary))
  except OSError as error:
    raise FailureError(f'{path}: {reason_of(error)}.') from error
  _count(folder, file_bytes, limit)
  return path


def _limit() -> int:
  """Returns the size that the cache may have, in bytes.

  Raises:
    UsageError: the variable is no number, or below 0.
  """
  text = os.environ.get(SIZE_VARIABLE) or str(_DEFAULT_GB)
  try:
    limit = int(float(text) * 1e9)
  except (ValueError, OverflowError):
    limit = -1
  if limit < 0:
    raise UsageError(f'{SIZE_VARIABLE}={text}: use a number of gigabytes.')
  return limit


def _folder() -> str:
  if folder := os.environ.get(FOLDER_VARIABLE):
    return expand_path(folder)
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return os.path.join(os.path.expanduser(root), 'clip_jax', 'blocks')


def _path(folder: str, key: str, index: int) -> str:
  content = f'{key}\0{BLOCK_BYTES}\0{index}'.encode('utf-8', 'surrogateescape')
  name = hashlib.blake2b(content, digest_size=20).hexdigest()
  return os.path.join(folder, name[:2], name[2:])


def _runs(numbers: list[int]) -> list[list[int]]:
  """Returns ascending numbers in lists of neighbours."""
  runs: list[list[int]] = []
  for number in numbers:
    if runs and runs[-1][-1] == number - 1:
      runs[-1].append(number)
    else:
      runs.append([number])
  return runs


def _load(path: str, length: int) -> bytes | None:
  """Reads a block; None where it is not there, or damaged."""
  try:
    with open(path, 'rb') as file:
      data = file.read(length + _CHECKSUM + 1)
      age = time.time() - os.fstat(file.fileno()).st_mtime
    block, checksum = data[:length], data[length:]
    if checksum != zlib.crc32(block).to_bytes(_CHECKSUM, 'little'):
      return None
    if age > _TOUCH_AFTER:
      os.utime(path)
  except OSError:
    return None
  return block


def _store(folder: str, path: str, block: bytes, limit: int) -> None:
  """Keeps a block; without room, or without the right, nothing is kept."""
  temporary = f'{path}.{uuid.uuid4().hex}.part'
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(temporary, 'wb') as file:
      file.write(block)
      file.write(zlib.crc32(block).to_bytes(_CHECKSUM, 'little'))
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    with _lock:
      first = folder not in _refused
      _refused.add(folder)
    if first:
      print_warnings(
        [f'{folder}: blocks cannot be kept there ({reason_of(error)}).']
      )
    return
  _count(folder, len(block), limit)


def _count(folder: str, size: int, limit: int) -> None:
  """Counts what was written, and looks at the whole folder once in a while."""
  with _lock:
    written = _written.get(folder, limit) + size
    look = written >= limit * _LOOK_AFTER
    _written[folder] = 0 if look else written
  if look:
    _evict(folder, limit)


def _evict(folder: str, limit: int) -> None:
  """Removes the blocks that were used longest ago, where there are too many."""
  lock, held = os.path.join(folder, 'lock'), FailureError('another one does it')
  with contextlib.suppress(OSError, FailureError), holding_lock(lock, held):
    blocks = []
    for part in os.scandir(folder):
      if part.is_dir():
        for entry in os.scandir(part.path):
          with contextlib.suppress(OSError):
            status = entry.stat()
            blocks.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in blocks)
    # A process writes a little between two looks, others at the same time.
    if total <= limit * (1 - _LOOK_AFTER * 4):
      return
    for _, size, path in sorted(blocks):
      if total <= limit * _KEEP:
        break
      with contextlib.suppress(OSError):
        os.unlink(path)
        total -= size
