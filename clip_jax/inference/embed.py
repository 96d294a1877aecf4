"""Embeds data sets of any size in shards, by one process or more, over kills.

A job's records are divided into shards, which go through the encoder one after
another (`encode_shards`) into a folder beside the output (`embed_folder`). When
all are there, one process joins them. The same job finds its shards again, and
another is refused. What a finished file already has is not encoded again
(`reused_rows`).
"""

import contextlib
import dataclasses
import filecmp
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.decoding import check_corrupt
from clip_jax.data.reading import none_readable
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import replacing
from clip_jax.inference.embed_folder import (
  Division,
  EmbedFolder,
  RowNotes,
  differences,
)
from clip_jax.inference.embed_job import EmbedJob
from clip_jax.inference.embeddings import open_embeddings, write_rows
from clip_jax.inference.embeddings_table import Extent, Lengths
from clip_jax.inference.encode_shards import EncodedShard, encode_shards
from clip_jax.inference.reused_rows import (
  EarlierTable,
  Update,
  open_earlier_table,
)
from clip_jax.inference.shards import Shard
from clip_jax.progress import Progress


@dataclasses.dataclass
class EmbedSummary:
  """The counts of what a call of `embed` has done.

  Attributes:
    shards, planned: those that are there, and all.
    images, texts: rows.
    corrupt: id to reason, of the images left out.
    truncated: how many texts were truncated.
    dims: E; 0 where there is no shard.
    ids, captions: how long they are.
    joined: whether the output is there.
    update: what became of the rows of an earlier output, where one served.
  """

  shards: int = 0
  planned: int = 0
  images: int = 0
  texts: int = 0
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)
  truncated: int = 0
  dims: int = 0
  ids: Lengths = dataclasses.field(default_factory=Lengths)
  captions: Lengths = dataclasses.field(default_factory=Lengths)
  joined: bool = False
  update: Update | None = None

  def add(self, shard: Shard, notes: RowNotes) -> None:
    """Counts one shard in."""
    self.shards += 1
    if shard.kind == 'image':
      self.images += len(notes.ids)
    else:
      self.texts += len(notes.ids)
    self.corrupt.update(notes.corrupt)
    self.truncated += notes.truncated
    self.ids = self.ids.extended_by(notes.ids)
    self.captions = self.captions.extended_by(notes.captions)

  def extent(self) -> Extent:
    """Returns the extent of the table that all these rows make."""
    rows = self.images + self.texts
    return Extent(rows, self.dims, self.ids, self.captions)


def embed(
  job: EmbedJob,
  out: Path,
  *,
  progress: Progress,
  say: Callable[[str], None],
) -> EmbedSummary:
  """Makes this worker's shards that are missing; joins all.

  Where the output is there already, by the same model, only what it does not
  have is encoded; the rest is taken from it, and it is replaced at the end.

  Args:
    job: what, and by which model.
    out: the file that all shards become. Nothing else is left when it is there.
    progress: shows how far the records are.
    say: takes a line for the person who waits.
  Returns:
    The summary of the whole job where this process or another joined it; else
    that of the shards that are there so far.
  Raises:
    UsageError: the shards of another job are in the way.
    FailureError: too much is corrupt, the disk is full, and the like; the
      shards stay, and the same call goes on.
  """
  folder = EmbedFolder(out)
  identity = job.identity()
  images = 0 if job.source is None else len(job.source)
  division = Division(images, len(job.texts or ()), job.part_rows)
  index, workers = job.worker
  with folder.begin(identity, division), folder.lock_worker(index, workers):
    joined = (workers > 1 or folder.was_joined) and not folder.done()
    if joined and _is_of(out, identity):
      say(f'{out} is there, joined from all parts: remove it to embed again')
      return _summary_of_output(out)
    with open_earlier_table(out, identity, say) as earlier:
      try:
        _make_shards(job, folder, earlier, progress, say)
      except BaseException:
        if folder.done():
          say(f'what is done stays in {folder.path}: the same command goes on')
        raise
      with folder.lock_for_joining() as there:
        if not there:  # joined by another process
          return _summary_of_output(out)
        summary = _summary_of_shards(folder)
        if summary.shards == summary.planned:
          _join(job, out, folder, earlier, summary)
        return summary


def _make_shards(
  job: EmbedJob,
  folder: EmbedFolder,
  earlier: EarlierTable,
  progress: Progress,
  say: Callable[[str], None],
) -> None:
  index, workers = job.worker
  mine = [shard for shard in folder.shards if shard.number % workers == index]
  missing = [shard for shard in mine if not folder.has(shard)]
  records = sum(map(len, mine))
  before = records - sum(map(len, missing))
  if before:
    of = f' of --shard={index}/{workers}' if workers > 1 else ''
    say(f'going on after {before:,} of {records:,} records{of}')
  if not missing:  # another process may be joining, and removing the folder
    return
  corrupt = _summary_of_shards(folder).corrupt
  for kind, encode in (
    ('image', job.model.encode_image),
    ('text', job.model.encode_text),
  ):
    shards = [shard for shard in missing if shard.kind == kind]
    total = sum(len(shard) for shard in mine if shard.kind == kind)
    done = total - sum(map(len, shards))
    items = job.items(kind, shards, corrupt, earlier)
    shown = iter(progress(items, total, f'{kind}s', done=done))
    with (
      contextlib.closing(items),
      contextlib.closing(encode_shards(encode, shards, shown)) as results,
    ):
      for encoded in results:
        vectors = _with_reused(encoded, earlier)
        folder.write(encoded.shard, _notes_of(job, encoded), vectors)


def _with_reused(
  encoded: EncodedShard[np.ndarray], earlier: EarlierTable
) -> Float[np.ndarray, 'N E']:
  """Returns the vectors of a shard's rows, of which some may be reused."""
  rows = np.array(
    [item.reused_row for item in encoded.items if not item.reason], np.int64
  )
  reused = rows >= 0
  if not reused.any():
    return encoded.features
  taken = earlier.vectors(rows[reused].tolist())
  vectors = np.empty((len(rows), taken.shape[1]), np.float32)
  vectors[reused] = taken
  if not reused.all():
    vectors[~reused] = encoded.features
  return vectors


def _notes_of(job: EmbedJob, encoded: EncodedShard) -> RowNotes:
  rows = [item for item in encoded.items if not item.reason]
  truncated = 0
  if encoded.shard.kind == 'text':
    tokenizer = job.model.tokenizer
    lengths = tokenizer.text_lengths([item.caption for item in rows])
    truncated = int((lengths > tokenizer.context_length).sum())
  return RowNotes(
    ids=[item.id for item in rows],
    captions=[item.caption for item in rows],
    digests=b''.join(item.digest for item in rows).hex(),
    corrupt=encoded.corrupt,
    truncated=truncated,
  )


def _summary_of_shards(folder: EmbedFolder) -> EmbedSummary:
  summary = EmbedSummary(planned=len(folder.shards))
  for shard in folder.done():
    summary.dims = summary.dims or folder.read_dims(shard)
    summary.add(shard, folder.read_notes(shard))
  return summary


def _is_of(out: Path, identity: dict[str, Any]) -> bool:
  """Returns whether the output is there, and is this job's."""
  try:
    with open_embeddings(out) as table:
      same = identity['outline'] == table.about.get('outline')
      return same and not differences(identity, table.about)
  except UsageError:  # there is none, or another kind of file
    return False


def _summary_of_output(out: Path) -> EmbedSummary:
  """Returns the summary of an output that another process has joined."""
  with open_embeddings(out) as table:
    counts = table.count_kinds()
    return EmbedSummary(
      images=counts.get('image', 0),
      texts=counts.get('text', 0),
      dims=table.dims,
      corrupt=table.about.get('corrupt', {}),
      truncated=table.about.get('truncated', 0),
      joined=True,
    )


def _join(
  job: EmbedJob,
  out: Path,
  folder: EmbedFolder,
  earlier: EarlierTable,
  summary: EmbedSummary,
) -> None:
  """Streams all shards into the output, and removes them.

  A kill before the output is renamed leaves the shards; one after it
  leaves a folder that the same command finds complete.
  """
  if job.source is not None:
    check_corrupt(summary.corrupt, job.max_corrupt, job.source.spec)
    if not summary.images:
      folder.remove()  # it has no row that the same command could reuse
      raise FailureError(none_readable(job.source.spec, summary.corrupt))
  if earlier.serves:
    summary.update = _compare(folder, earlier)
  about = {
    **folder.identity,
    'corrupt': summary.corrupt,
    'truncated': summary.truncated,
  }

  def blocks():
    return map(folder.read_rows, folder.shards)

  # A temporary file in the folder is removed with it, should a kill leave one.
  with replacing(out, temporary_in=folder.path) as temporary:
    with open(temporary, 'wb') as file:
      write_rows(file, out.suffix.lower(), blocks, summary.extent(), about)
    if out.exists() and filecmp.cmp(temporary, out, shallow=False):
      # An index of a table is rebuilt where the table's time has changed.
      times = out.stat()
      os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
  folder.remove()
  summary.joined = True


def _compare(folder: EmbedFolder, earlier: EarlierTable) -> Update:
  """Returns what became of the rows that were there."""
  update = Update()
  for kind in ('image', 'text'):
    notes = (
      folder.read_notes(shard) for shard in folder.shards if shard.kind == kind
    )
    rows = ((x.ids, x.digest_array()) for x in notes)
    update += earlier.rows(kind).compare(kind, rows)
  return update
