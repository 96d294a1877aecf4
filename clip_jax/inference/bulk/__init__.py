"""Millions of embeddings: in parts, by one process or several, and over kills.

A job's records are divided into parts (`parts`), which go through the encoder
one after another (`encode`) into a folder beside the output (`folder`). When
all are there, one process joins them. The same job finds its parts again, and
another is refused (`identity`). What a finished file already has is not encoded
again (`known`).
"""

import contextlib
import filecmp
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.reading import none_readable
from clip_jax.errors import FailureError, UsageError, reason_of
from clip_jax.inference.bulk.encode import Encoded, Item, encode_parts
from clip_jax.inference.bulk.folder import PartsFolder
from clip_jax.inference.bulk.identity import differences
from clip_jax.inference.bulk.job import Job, Summary
from clip_jax.inference.bulk.known import Known, Update, known_rows
from clip_jax.inference.bulk.parts import (
  Plan,
  digests_of,
  read_dims,
  read_notes,
  read_rows,
  sync,
  write_part,
)
from clip_jax.inference.bulk.records import check_corrupt, items_of, notes_of
from clip_jax.inference.embeddings import write_rows
from clip_jax.inference.embeddings_reader import open_embeddings

# Passes items on and shows how far they are: items, done before, total, unit.
Watch = Callable[[Iterable[Item], int, int, str], Iterator[Item]]


def embed(
  job: Job,
  out: Path,
  *,
  watch: Watch,
  say: Callable[[str], None],
) -> Summary:
  """Makes this process's share of the parts that are missing; joins all.

  Where the output is there already, by the same model, only what it does not
  have is encoded; the rest is taken from it, and it is replaced at the end.

  Args:
    job: what, and by which model.
    out: the file that all parts become. Nothing else is left when it is there.
    watch: passes on items and shows progress.
    say: takes a line for the person who waits.
  Returns:
    Of the whole job where this process or another joined it; else of the
    parts that are there so far.
  Raises:
    UsageError: other parts are in the way.
    FailureError: too much is corrupt, the disk is full, and the like; the
      parts stay, and the same call goes on.
  """
  folder = PartsFolder(out)
  identity = job.identity()
  count = 0 if job.source is None else len(job.source)
  plan = Plan(count, len(job.texts or ()), job.part_rows)
  index, shares = job.share
  with folder.begun(identity, plan), folder.share(index, shares):
    joined = (shares > 1 or folder.was_joined) and not folder.done()
    if joined and _is_of(out, identity):
      say(f'{out} is there, joined from all parts: remove it to embed again')
      return _summary_of(out)
    with known_rows(out, identity, say) as known:
      try:
        _make_parts(job, out, folder, known, watch, say)
      except BaseException:
        if folder.done():
          say(f'what is done stays in {folder.path}: the same command goes on')
        raise
      with folder.joining() as there:
        if not there:  # joined by another process
          return _summary_of(out)
        summary = _summary(folder)
        if summary.parts == summary.planned:
          _join(job, out, folder, known, summary)
        return summary


def _make_parts(
  job: Job,
  out: Path,
  folder: PartsFolder,
  known: Known,
  watch: Watch,
  say: Callable[[str], None],
) -> None:
  index, shares = job.share
  mine = [part for part in folder.plan if part.number % shares == index]
  missing = [part for part in mine if not folder.has(part)]
  records = sum(map(len, mine))
  before = records - sum(map(len, missing))
  if before:
    of = f' of share {index}/{shares}' if shares > 1 else ''
    say(f'going on after {before:,} of {records:,} records{of}')
  if not missing:  # another process may be joining, and removing the folder
    return
  progress = _summary(folder)
  for kind in ('image', 'text'):
    parts = [part for part in missing if part.kind == kind]
    total = sum(len(part) for part in mine if part.kind == kind)
    items = items_of(job, kind, parts, progress.corrupt, known)
    watched = watch(items, total - sum(map(len, parts)), total, f'{kind}s')
    encode = job.model.encode_image
    if kind == 'text':
      encode = job.model.encode_text
    with (
      contextlib.closing(items),
      contextlib.closing(encode_parts(encode, parts, watched)) as results,
    ):
      for encoded in results:
        vectors = _with_known(encoded, known)
        with _written(out):
          notes = notes_of(job, encoded)
          write_part(folder.path, encoded.part, notes, vectors)


def _with_known(encoded: Encoded, known: Known) -> Float[np.ndarray, 'N E']:
  """The vectors of a part's rows: those encoded, and those that were there."""
  rows = np.array([x.known for x in encoded.items if not x.reason], np.int64)
  there = rows >= 0
  if not there.any():
    return encoded.vectors
  taken = known.vectors(rows[there].tolist())
  vectors = np.empty((len(rows), taken.shape[1]), np.float32)
  vectors[there] = taken
  if not there.all():
    vectors[~there] = encoded.vectors
  return vectors


def _summary(folder: PartsFolder) -> Summary:
  summary = Summary(planned=len(folder.plan))
  for part in folder.done():
    dims = summary.dims or read_dims(folder.path, part)
    summary.add(part, read_notes(folder.path, part), dims)
  return summary


def _is_of(out: Path, identity: dict[str, Any]) -> bool:
  """Whether the output is there, and is this job's."""
  try:
    with open_embeddings(out) as table:
      same = identity['outline'] == table.about.get('outline')
      return same and not differences(identity, table.about)
  except UsageError:  # there is none, or another kind of file
    return False


def _summary_of(out: Path) -> Summary:
  """The summary of an output that another process has joined."""
  with open_embeddings(out) as table:
    counts = table.count_kinds()
    return Summary(
      images=counts.get('image', 0),
      texts=counts.get('text', 0),
      dims=table.dims,
      corrupt=table.about.get('corrupt', {}),
      truncated=table.about.get('truncated', 0),
      joined=True,
    )


def _join(
  job: Job,
  out: Path,
  folder: PartsFolder,
  known: Known,
  summary: Summary,
) -> None:
  """Streams all parts into the output, puts it in its place, and removes them.

  An output that would be the same is left as it is, so that an index of it
  stays good.

  A kill before the move leaves the parts; one after it leaves a folder that
  the same command finds complete.
  """
  if job.source is not None:
    check_corrupt(job, summary.corrupt)
    if not summary.images:
      folder.remove()  # for nothing in it is worth keeping
      raise FailureError(none_readable(job.source.spec, summary.corrupt))
  if known.serves:
    summary.update = _compare(folder, known)
  about = {
    **folder.identity,
    'corrupt': summary.corrupt,
    'truncated': summary.truncated,
  }
  temporary = folder.path / 'joined.tmp'

  def blocks():
    return (read_rows(folder.path, part) for part in folder.plan)

  try:
    with _written(out), open(temporary, 'wb') as file:
      write_rows(file, out.suffix.lower(), blocks, summary.extent(), about)
      sync(file)
      if not (out.exists() and filecmp.cmp(temporary, out, shallow=False)):
        os.replace(temporary, out)
  finally:
    temporary.unlink(missing_ok=True)
  folder.remove()
  summary.joined = True


def _compare(folder: PartsFolder, known: Known) -> Update:
  """What became of the rows that were there."""
  update = Update()
  for kind in ('image', 'text'):
    parts = (part for part in folder.plan if part.kind == kind)
    notes = (read_notes(folder.path, part) for part in parts)
    update += known.compare(kind, ((x.ids, digests_of(x)) for x in notes))
  return update


@contextlib.contextmanager
def _written(out: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise FailureError(
      f'{out} could not be written: {reason_of(error)}.'
    ) from error
