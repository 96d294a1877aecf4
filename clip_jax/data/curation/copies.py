"""The stages that compare pairs: exact copies, and near copies in blocks.

Exact copies are pairs of one image and text, and pairs whose images are of the
same bytes. Near copies are images whose embeddings have a high cosine; as in
SemDeDup (arXiv 2303.09540), k-means puts the embeddings in blocks, and only
those of a block are compared. Of copies the first in the input's order is kept.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import threadpoolctl
from jaxtyping import Bool, Float, Int, UInt64

from clip_jax.data.curation.arrays import (
  load_array,
  write_array,
  write_counts,
)
from clip_jax.data.curation.funnel import Funnel
from clip_jax.data.curation.partitions import (
  partition_of,
  read_partition,
  writing_partitions,
)
from clip_jax.data.curation.rows import (
  CONTENT,
  DIGEST,
  EMBEDDING,
  MATCHED,
  POSITION,
)

_SAMPLE = 2**15  # embeddings that the clusters' centres are found with
_ROUNDS = 10  # of k-means

# Is given float32 [N, E] of unit length and a cosine; returns for each row the
# row that it is a copy of, itself where it is none.
FindCopies = Callable[[np.ndarray, float], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One stage that drops copies.

  Attributes:
    step: 'copies', 'image copies' or 'near copies'.
    schema: of the rows.
    partitions: of the files that are read.
    out_partitions, out_key: of the file that is written, and by what: DIGEST,
      EMBEDDING (the nearest of `centres`), or CONTENT.
    text, image: columns that samples show.
    queries: how many queries there are; 0 where none are counted.
    centres: a file of the clusters' centres, or None.
    near, find_copies: of near copies.
  """

  step: str
  schema: pa.Schema
  partitions: int
  out_partitions: int
  out_key: str
  text: str
  image: str | None
  queries: int = 0
  centres: str | None = None
  near: float = 1.0
  find_copies: FindCopies | None = None


@dataclasses.dataclass(frozen=True)
class ComparisonTask:
  """A partition of files, and the files that are written.

  Attributes:
    partition: its number.
    inputs: files of `writing_partitions`.
    out: the rows that are kept.
    counts: a .npy file of the matches of each query, or None.
  """

  partition: int
  inputs: tuple[str, ...]
  out: str
  counts: str | None = None


def drop_copies(comparison: Comparison, task: ComparisonTask) -> dict[str, Any]:
  """Does one task: keeps the first of each group of copies."""
  funnel = Funnel(comparison.text, comparison.image)
  funnel.begin(comparison.step)

  def rows(columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    return read_partition(
      task.inputs, task.partition, comparison.partitions, columns
    )

  with threadpoolctl.threadpool_limits(1):  # the same sums on every engine
    if comparison.find_copies is not None:
      is_copy = _near_copies(rows, comparison)
      reason = f'a cosine from {comparison.near:g}'
    else:
      name = CONTENT if comparison.step == 'copies' else DIGEST
      is_copy = _exact_copies(rows, name)
      reason = 'the same bytes' if name == DIGEST else 'the same image and text'
    counts = np.zeros(comparison.queries, np.int64)
    begun = 0
    with writing_partitions(
      task.out, comparison.schema, comparison.out_partitions
    ) as writer:
      for batch in rows():
        dropped = is_copy[begun : begun + batch.num_rows]
        begun += batch.num_rows
        kept = funnel.keep(comparison.step, batch, {reason: dropped})
        writer.add(kept, _partitions(comparison, kept))
        if comparison.queries:
          matched = kept.column(MATCHED).flatten().to_numpy()
          counts += np.bincount(matched, minlength=comparison.queries)
  if task.counts is not None:
    write_counts(counts[None], task.counts)
  return funnel.as_counts()


def _keys_of(
  column: pa.Array,
) -> tuple[UInt64[np.ndarray, 'N 2'], Bool[np.ndarray, ' N']]:
  """Returns the first 128 bits of keys, and which rows have one."""
  keys = column.to_pylist()
  joined = b''.join((key or b'')[:16].ljust(16, b'\0') for key in keys)
  known = np.array([key is not None for key in keys], bool)
  return np.frombuffer(joined, '<u8').reshape(-1, 2), known


def _exact_copies(
  rows: Callable[..., Iterator[pa.RecordBatch]], name: str
) -> Bool[np.ndarray, ' N']:
  """Returns the rows whose key an earlier position has, too.

  Only keys and positions are in memory. A row without a key is no copy.
  """
  parts: list[tuple[np.ndarray, ...]] = []
  for batch in rows([name, POSITION]):
    positions = batch.column(POSITION).to_numpy()
    parts.append((*_keys_of(batch.column(name)), positions))
  if not parts:
    return np.zeros(0, bool)
  keys, known, positions = map(np.concatenate, zip(*parts, strict=True))
  order = np.lexsort((positions, keys[:, 1], keys[:, 0], known))
  keys, known = keys[order], known[order]
  same = np.zeros(len(order), bool)
  same[1:] = (keys[1:] == keys[:-1]).all(axis=1) & known[1:] & known[:-1]
  is_copy = np.zeros(len(order), bool)
  is_copy[order] = same
  return is_copy


def _near_copies(
  rows: Callable[..., Iterator[pa.RecordBatch]], comparison: Comparison
) -> Bool[np.ndarray, ' N']:
  """Returns the rows that look like one of an earlier position."""
  assert comparison.find_copies is not None
  vectors: list[np.ndarray] = []
  positions: list[np.ndarray] = []
  for batch in rows([EMBEDDING, POSITION]):
    vectors.append(embeddings_of(batch))
    positions.append(batch.column(POSITION).to_numpy())
  if not vectors:
    return np.zeros(0, bool)
  order = np.argsort(np.concatenate(positions))
  of = comparison.find_copies(np.concatenate(vectors)[order], comparison.near)
  is_copy = np.zeros(len(order), bool)
  is_copy[order] = of != np.arange(len(of))
  return is_copy


def embeddings_of(batch: pa.RecordBatch) -> Float[np.ndarray, 'N E']:
  """Returns the embeddings between the stages, float32."""
  column = batch.column(EMBEDDING)
  return column.flatten().to_numpy().reshape(len(column), -1)


def _partitions(
  comparison: Comparison, batch: pa.RecordBatch
) -> Int[np.ndarray, ' N']:
  """Returns the partition of the next stage that each row is for."""
  if not batch.num_rows:
    return np.zeros(0, np.int64)
  if comparison.out_key == EMBEDDING:
    assert comparison.centres is not None
    centres = load_array(comparison.centres)
    return (embeddings_of(batch) @ centres.T).argmax(axis=1)
  keys, known = _keys_of(batch.column(comparison.out_key))
  content, _ = _keys_of(batch.column(CONTENT))
  hashes = np.where(known, keys[:, 0], content[:, 0])
  return partition_of(hashes, comparison.out_partitions)


@dataclasses.dataclass(frozen=True)
class CentresTask:
  """The file of the centres, and files to draw a sample from."""

  out: str
  inputs: tuple[str, ...]
  partitions: int
  clusters: int


def find_centres(task: CentresTask) -> dict[str, Any]:
  """Clusters a sample of the embeddings by spherical k-means.

  The sample is that of the first partitions: they are made by a hash.
  """
  sample: list[np.ndarray] = []
  size = 0
  for partition in range(task.partitions):
    for batch in read_partition(
      task.inputs, partition, task.partitions, [EMBEDDING]
    ):
      sample.append(embeddings_of(batch))
      size += batch.num_rows
    if size >= _SAMPLE:
      break
  if not sample:  # no pair is left, and one cluster will do
    sample = [np.zeros((1, 1), np.float32)]
  vectors = np.concatenate(sample)[: 2 * _SAMPLE]
  with threadpoolctl.threadpool_limits(1):
    centres = _k_means(vectors, min(task.clusters, len(vectors)))
  write_array(centres, task.out)
  return {'clusters': len(centres)}


def _k_means(
  vectors: Float[np.ndarray, 'N E'], clusters: int
) -> Float[np.ndarray, 'K E']:
  """Returns centres of unit length; the first ones are evenly spaced rows."""
  rows = np.arange(clusters) * len(vectors) // clusters
  centres = vectors[rows].copy()
  for _ in range(_ROUNDS):
    nearest = np.concatenate(
      [
        (part @ centres.T).argmax(axis=1)
        for part in np.array_split(vectors, max(1, len(vectors) // 4096))
      ]
    )
    sums = np.zeros_like(centres)
    np.add.at(sums, nearest, vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
  return centres
