"""Finds the copies that `data dedup` prints: in a data set, or a table."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from clip_jax.commands import common_flags
from clip_jax.errors import FailureError, UsageError, print_notes
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.data.sources import Source
  from clip_jax.inference.dedup import Copies
  from clip_jax.inference.embeddings_reader import EmbeddingsTable


class Items(NamedTuple):
  """Images or texts that were compared, and which are copies.

  Attributes:
    kind: 'image' or 'text'.
    ids, captions: of each item.
    rows: of the source, or of the table that was embedded of it.
    copies: among them.
    corrupt: id to reason, of images that cannot be read.
    source: has the images; None where it is not at hand.
    threshold: of the cosine; None where only exact copies were looked for.
  """

  kind: str
  ids: list[str]
  captions: list[str]
  rows: list[int]
  copies: 'Copies'
  corrupt: dict[str, str]
  source: 'Source | None'
  threshold: float | None = None


def in_source(values: flags.FlagValues, spec: str) -> Items:
  """Finds the copies in a data set: near ones, too, where --model is given.

  Raises:
    UsageError: it cannot be opened, or the model cannot.
    FailureError: too many images are corrupt, or none can be read.
  """
  from clip_jax.data.sources import open_source

  source = open_source(spec, captions=tuple(values.captions))
  print_notes(source.notices)
  if not values.model:
    return _exact_in_source(values, source)
  with _embedded(values, source) as (path, corrupt):
    return in_table(values, path, corrupt)


def _exact_in_source(values: flags.FlagValues, source: 'Source') -> Items:
  from clip_jax.data.reading import none_readable, read_ahead
  from clip_jax.inference.dedup import exact_copies
  from clip_jax.inference.encode_shards import check_corrupt

  rows, digests, corrupt = [], [], {}
  everything = range(len(source))
  reads = read_ahead(source, everything, lambda digest: True)
  watched = show_progress(reads, len(source), 'images')
  for row, read in zip(everything, watched, strict=True):
    if read.reason:
      corrupt[source.id(row)] = read.reason
      check_corrupt(source, corrupt, values.max_corrupt)
    else:
      rows.append(row)
      digests.append(read.digest)
  if not rows:
    raise FailureError(none_readable(source.spec, corrupt))
  return Items(
    'image',
    [source.id(row) for row in rows],
    [(source.captions(row) or [''])[0] for row in rows],
    rows,
    exact_copies(digests),
    corrupt,
    source,
  )


@contextlib.contextmanager
def _embedded(
  values: flags.FlagValues, source: 'Source'
) -> Iterator[tuple[Path, dict[str, str]]]:
  """A source's embeddings in a file that is there as long as it is needed."""
  from clip_jax.inference.embed import EmbedJob, embed

  model = common_flags.load_model(
    values, dtype=values.dtype, batch_size=values.batch_size
  )
  job = EmbedJob(
    model=model,
    dtype=values.dtype,
    source=source,
    captions=values.captions,
    texts=None,
    texts_name='',
    max_corrupt=values.max_corrupt,
    part_rows=-(-1024 // values.batch_size) * values.batch_size,
  )
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'embeddings.npz'
    summary = embed(
      job,
      path,
      progress=show_progress,
      say=lambda line: None,  # of a folder that will be gone
    )
    yield path, summary.corrupt


def in_table(
  values: flags.FlagValues, path: Path, corrupt: dict[str, str]
) -> Items:
  """Finds the copies among the images of a table, or, without any, its texts.

  Args:
    corrupt: id to reason, of images that are not in the table.
  Raises:
    UsageError: it is no table of embeddings, or it has no rows.
  """
  from clip_jax.inference.dedup import exact_copies, near_copies
  from clip_jax.inference.embeddings_reader import open_embeddings

  with open_embeddings(path) as table:
    if not table.rows:
      raise UsageError(f'{path} has no rows.')
    kind = 'image' if 'image' in table.count_kinds() else 'text'
    rows, digests = _rows_of(table, kind)
    entries = table.entries(rows)
    copies = near_copies(
      table,
      rows,
      exact_copies(digests),
      values.threshold,
      watch=lambda tiles: show_progress(tiles, len(rows), 'rows', size=len),
    )
    return Items(
      kind,
      [entries[row].id for row in rows],
      [entries[row].caption for row in rows],
      rows,
      copies,
      corrupt,
      _images_of(table) if values.html else None,
      values.threshold,
    )


def _rows_of(
  table: 'EmbeddingsTable', kind: str
) -> tuple[list[int], list[bytes]]:
  """Returns the rows of a kind, and a digest of the content of each."""
  if not table.has_digests:
    rows = [row for chunk in table.chunks(kind) for row in chunk.rows.tolist()]
    return rows, [row.to_bytes(8, 'big') for row in rows]
  rows, digests, start = [], [], 0
  for part in table.contents():
    for i, of_kind in enumerate(part.kinds):
      if of_kind == kind:
        rows.append(start + i)
        digests.append(part.digests[i].tobytes())
    start += len(part.kinds)
  return rows, digests


def _images_of(table: 'EmbeddingsTable') -> 'Source | None':
  """Returns the images that were embedded, where they still are."""
  try:
    return table.open_images()
  except (UsageError, FailureError) as error:
    print(f'the page has no images: {error}', file=sys.stderr)
    return None
