"""Fetches the rows of one shard, and writes its files as img2dataset does.

00000.tar         KEY.jpg (or .png, …), KEY.txt, KEY.json of each image; where
                  an image of the lists has several captions, none has KEY.txt,
                  as a reader that prefers it would miss the others
00000.parquet     a row for each URL, with its status and, failing, why
00000_stats.json  counts, and how often each status came
"""

import asyncio
import collections
import dataclasses
import hashlib
import json
import math
import os
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.fetching.client import Client, Limits
from clip_jax.data.fetching.failure import FetchError
from clip_jax.data.fetching.resize import Resizing, take_image
from clip_jax.data.fetching.url_list import Row
from clip_jax.data.indexing.tar import Member, members
from clip_jax.data.prepare.webdataset_shards import (
  OVERHEAD_BYTES,
  write_member,
)
from clip_jax.errors import MissingFileError, one_line
from clip_jax.files import to_bytes
from clip_jax.progress import Progress, no_progress

SHARD_DIGITS = 5
SUCCESS = 'success'
# The two words of img2dataset for what failed.
_NOT_DOWNLOADED = 'failed_to_download'
_NOT_RESIZED = 'failed_to_resize'
_SIZES = ('width', 'height', 'original_width', 'original_height')
# Hosts that are named among those that failed, of each shard.
_NAMED_HOSTS = 100


@dataclasses.dataclass(frozen=True)
class ListShard:
  """The rows of a list that become one shard.

  Attributes:
    number: from 0, of all lists together.
    rows: the name of a Parquet file of them, in the folder of the shards.
    count: how many.
  """

  number: int
  rows: str
  count: int

  def path(self, out: str, ending: str) -> str:
    """Returns the path of its .tar, .parquet or _stats.json."""
    return storage.join(out, f'{self.number:0{SHARD_DIGITS}}{ending}')


@dataclasses.dataclass
class _Outcome:
  """The result of one row; `start` and `length` are bytes of the spool."""

  status: str
  reason: str
  message: str | None = None
  start: int = 0
  length: int = 0
  suffix: str = ''
  sha256: str | None = None
  sizes: tuple[int | None, ...] = (None,) * 4


def fetch_shard(
  shard: ListShard,
  *,
  out: str,
  shard_size: int,
  with_text: bool,
  resizing: Resizing,
  limits: Limits,
  progress: Progress = no_progress,
) -> dict[str, Any]:
  """Fetches the images of a shard and writes its files.

  Images that an earlier call fetched are kept, as long as its files are there;
  the other URLs are asked for.

  Args:
    out: the folder of all shards.
    shard_size: rows of a full shard, of which keys are made.
    with_text: whether captions are in KEY.txt, too; no row has more than one.
    progress: shows how many URLs are done.
  Returns:
    Counts: 'urls', 'successes', the two kinds of failure, 'bytes',
    'reasons' (why, how often) and 'hosts' (those of failures).
  Raises:
    FailureError: a file cannot be read or written.
  """
  started = time.time()
  with storage.open_file(storage.join(out, shard.rows)) as file:
    table = pq.read_table(file)
  rows = table.to_pylist()
  folder = None if storage.is_remote(out) else out
  with tempfile.TemporaryFile(dir=folder) as spool:
    earlier = _keep_images(shard, out, rows, spool)
    fetching = _Fetching(spool, resizing, limits)
    outcomes = asyncio.run(fetching.run(rows, earlier, progress))
    keys = _keys(shard.number, shard_size, len(rows))
    described = [
      _describe(row, key, outcome)
      for row, key, outcome in zip(rows, keys, outcomes, strict=True)
    ]
    if earlier:  # killed from here on, the shard counts as incomplete
      storage.remove(shard.path(out, '_stats.json'))
    with storage.writing(shard.path(out, '.tar')) as path:
      samples = _samples(spool, described, outcomes, with_text=with_text)
      _write_tar(path, samples)
  with storage.writing(shard.path(out, '.parquet')) as path:
    pq.write_table(_with_outcomes(table, described), path)
  counts = _count(rows, outcomes)
  stats = {
    'count': counts['urls'],
    **{x: counts[x] for x in ('successes', _NOT_DOWNLOADED, _NOT_RESIZED)},
    'duration': time.time() - started,
    'start_time': started,
    'end_time': time.time(),
    'status_dict': {SUCCESS: counts['successes'], **counts['reasons']},
  }
  storage.write_bytes(shard.path(out, '_stats.json'), to_bytes(stats))
  return counts


def _keep_images(
  shard: ListShard, out: str, rows: Sequence[Row], spool: IO[bytes]
) -> dict[int, _Outcome]:
  """Copies the images of a shard that was fetched before into the spool.

  Returns:
    The outcomes of the rows whose images are there, by the rows' positions.
  """
  outcomes: dict[int, _Outcome] = {}
  try:
    with storage.open_file(shard.path(out, '.parquet')) as file:
      before = pq.read_table(file).to_pylist()
    tar = storage.open_file(shard.path(out, '.tar'))
  except (MissingFileError, pa.ArrowException):
    return outcomes
  with tar:
    images = _images_in(tar)
    for index, (row, old) in enumerate(zip(rows, before, strict=False)):
      is_same = row.get('url') == old.get('url')
      if is_same and old['status'] == SUCCESS and old['key'] in images:
        suffix, member = images[old['key']]
        tar.seek(member.data)
        start, length = spool.tell(), spool.write(tar.read(member.size))
        sizes = tuple(old[name] for name in _SIZES)
        outcomes[index] = _Outcome(
          SUCCESS, '', None, start, length, suffix, old['sha256'], sizes
        )
  return outcomes


def _images_in(tar: IO[bytes]) -> dict[str, tuple[str, Member]]:
  """Returns the suffix and the member of each image, by its key."""

  def read(offset: int, length: int) -> bytes:
    tar.seek(offset)
    return tar.read(length)

  images: dict[str, tuple[str, Member]] = {}
  for member in members(read, tar.seek(0, os.SEEK_END)):
    key, suffix = member.key_and_suffix() or ('', '')
    if member.problem is None and suffix not in ('json', 'txt'):
      images[key] = suffix, member
  return images


class _Fetching:
  """Fetches rows, and puts their images into a spool as they come."""

  def __init__(self, spool: IO[bytes], resizing: Resizing, limits: Limits):
    self._spool = spool
    self._resizing = resizing
    self._limits = limits
    # Pillow lets go of Python's lock while it decodes.
    self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

  async def run(
    self,
    rows: Sequence[Row],
    earlier: Mapping[int, _Outcome],
    progress: Progress,
  ) -> list[_Outcome]:
    """Returns what became of each row; those of `earlier` are not fetched."""
    outcomes = dict(earlier)

    async def fetch(client: Client, index: int) -> None:
      outcomes[index] = await self._fetch(client, rows[index])

    async with Client(self._limits) as client:
      tasks = [
        asyncio.create_task(fetch(client, index))
        for index in range(len(rows))
        if index not in earlier
      ]
      for task in progress(asyncio.as_completed(tasks), len(tasks), 'URLs'):
        await task
    self._decoders.shutdown()
    return [outcomes[index] for index in range(len(rows))]

  async def _fetch(self, client: Client, row: Row) -> _Outcome:
    """Fetches one row; whatever is wrong with it is its outcome."""
    url, wanted = row.get('url'), row.get('sha256')
    loop = asyncio.get_running_loop()

    async def take(body: bytes) -> tuple[_Outcome, bytes]:
      return await loop.run_in_executor(
        self._decoders, _take, body, wanted, self._resizing
      )

    try:
      if not isinstance(url, str) or not url.strip():
        raise FetchError('no URL in its row')
      outcome, data = await client.fetch(url, take)
    except FetchError as error:
      return _Outcome(_NOT_DOWNLOADED, error.reason, str(error))
    except Exception as error:  # one strange server is no end of the others
      reason = f'unexpected {type(error).__name__}'
      return _Outcome(_NOT_DOWNLOADED, reason, one_line(f'{reason}: {error}'))
    outcome.start, outcome.length = self._spool.tell(), len(data)
    self._spool.write(data)
    return outcome


def _take(
  body: bytes, wanted: object, resizing: Resizing
) -> tuple[_Outcome, bytes]:
  """Checks a body, and returns its outcome with the bytes to keep."""
  digest = hashlib.sha256(body).hexdigest()
  wanted = wanted.strip().lower() if isinstance(wanted, str) else ''
  if wanted and wanted != digest:
    raise FetchError('sha256 differs', f'{digest} came')
  try:
    image = take_image(body, resizing)
  except FetchError as error:
    return _Outcome(_NOT_RESIZED, error.reason, str(error)), b''
  sizes = (*image.size, *image.original_size)
  taken = _Outcome(SUCCESS, '', suffix=image.suffix, sha256=digest, sizes=sizes)
  return taken, image.data


def _keys(number: int, shard_size: int, count: int) -> list[str]:
  """Returns the keys of rows, as img2dataset numbers them."""
  digits = math.ceil(math.log10(shard_size))
  width = digits + SHARD_DIGITS
  return [f'{10**digits * number + i:0{width}}' for i in range(count)]


def _describe(row: Row, key: str, outcome: _Outcome) -> Row:
  """Returns what KEY.json holds of a row."""
  return {
    **row,
    'key': key,
    'status': outcome.status,
    'error_message': outcome.message,
    **dict(zip(_SIZES, outcome.sizes, strict=True)),
    'sha256': outcome.sha256,
  }


def _with_outcomes(table: pa.Table, described: Sequence[Row]) -> pa.Table:
  """Returns the list's columns as they came, and ours behind them."""
  if 'sha256' in table.column_names:
    table = table.drop_columns(['sha256'])
  texts = ('key', 'status', 'error_message')
  kinds = [(x, pa.string()) for x in texts]
  kinds += [(x, pa.int32()) for x in _SIZES] + [('sha256', pa.string())]
  for name, kind in kinds:
    values = [row[name] for row in described]
    table = table.append_column(name, pa.array(values, kind))
  return table


def _samples(
  spool: IO[bytes],
  described: Sequence[Row],
  outcomes: Sequence[_Outcome],
  *,
  with_text: bool,
) -> Iterator[tuple[str, bytes]]:
  """Yields the name and content of each member of the tar, in rows' order."""
  for row, outcome in zip(described, outcomes, strict=True):
    if outcome.status != SUCCESS:
      continue
    spool.seek(outcome.start)
    key = row['key']
    yield f'{key}.{outcome.suffix}', spool.read(outcome.length)
    content = json.dumps(row, ensure_ascii=False, indent=2, default=str)
    yield f'{key}.json', content.encode()
    if with_text and 'caption' in row:
      yield f'{key}.txt', _text_of(row['caption']).encode('utf-8', 'replace')


def _text_of(caption: object) -> str:
  """Returns a caption as text; of a list, its first item."""
  if isinstance(caption, list):
    caption = caption[0] if caption else None
  return '' if caption is None else str(caption)


def _write_tar(path: os.PathLike, samples: Iterator[tuple[str, bytes]]) -> None:
  with open(path, 'wb') as file:
    for name, content in samples:
      write_member(file, name, content)
    file.write(bytes(OVERHEAD_BYTES))


def _count(rows: Sequence[Row], outcomes: Sequence[_Outcome]) -> dict[str, Any]:
  statuses = collections.Counter(outcome.status for outcome in outcomes)
  failed = [
    (row, outcome)
    for row, outcome in zip(rows, outcomes, strict=True)
    if outcome.status != SUCCESS
  ]
  reasons = collections.Counter(outcome.reason for _, outcome in failed)
  hosts = collections.Counter(_host_of(row.get('url')) for row, _ in failed)
  return {
    'urls': len(rows),
    'successes': statuses[SUCCESS],
    _NOT_DOWNLOADED: statuses[_NOT_DOWNLOADED],
    _NOT_RESIZED: statuses[_NOT_RESIZED],
    'bytes': sum(outcome.length for outcome in outcomes),
    'reasons': dict(reasons.most_common()),
    'hosts': dict(hosts.most_common(_NAMED_HOSTS)),
  }


def _host_of(url: object) -> str:
  try:
    return urllib.parse.urlsplit(str(url)).hostname or ''
  except ValueError:
    return ''
