"""Looks at images that are at hand: files, or bytes in a column.

What needs a model or an evaluation's hashes comes from outside, as functions:
this package is to the left of both.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from clip_jax.data import storage
from clip_jax.data.curation import filters
from clip_jax.data.curation.arrays import load_array
from clip_jax.data.curation.funnel import Funnel
from clip_jax.data.curation.metadata import check_corrupt
from clip_jax.data.curation.rows import (
  DIGEST,
  EMBEDDING,
  SCORE,
  with_column,
)
from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.sources.arrow_columns import image_in
from clip_jax.errors import FailureError

_AT_ONCE = 256  # images in memory
_BLOCK = 1024  # rows compared with as many images of an evaluation at once

# Is given the bytes of N images that can be decoded, and their texts. Returns
# arrays of N: 'score', 'embedding' (unit length), 'hash' (uint64), 'flat'.
Look = Callable[[Sequence[bytes], Sequence[str]], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ImageChecks:
  """Says which checks an image has to pass, and by what data.

  Attributes:
    text, image: names of the columns.
    read: whether images are read; else only the columns are looked at.
    looks: functions of images and texts; they pickle.
    scores: whether one of these gives scores.
    embedding: a column of embeddings, or None.
    min_side, max_aspect, min_score: see `Settings`.
    digests: a file of the SHA-256 of an evaluation's images, sorted; or None.
    hashes: a file of their perceptual hashes, or None; `bits`: of 64 in which
      two copies may differ.
    embeddings: a file of their embeddings, of unit length, or None; `near`: the
      cosine from which two are copies.
    max_corrupt: see `Settings`.
  """

  text: str
  image: str | None
  read: bool
  looks: tuple[Look, ...] = ()
  scores: bool = False
  embedding: str | None = None
  min_side: int = 0
  max_aspect: float = 0.0
  min_score: float | None = None
  digests: str | None = None
  hashes: str | None = None
  bits: int = 0
  embeddings: str | None = None
  near: float = 1.0
  max_corrupt: int = 100


@dataclasses.dataclass
class _Seen:
  """The properties of N images; the reason of a readable image is ''."""

  reasons: list[str]
  digests: list[bytes | None]
  sizes: Float[np.ndarray, 'N 2']
  arrays: dict[str, np.ndarray]


def check_images(
  checks: ImageChecks,
  batch: pa.RecordBatch,
  funnel: Funnel,
  path: str,
  corrupt: dict[str, str],
) -> pa.RecordBatch:
  """Drops pairs by their images; adds digests, scores and embeddings.

  Args:
    batch: has the column of digests and those of the input.
    funnel: gets the counts of the steps 'image' and 'evaluation'.
    path: the file of the batch; paths of images are relative to its folder.
    corrupt: gets unreadable images and the reasons.
  Raises:
    FailureError: too many images cannot be read, or a store does not answer.
  """
  arrays: dict[str, np.ndarray] = {}
  if checks.read:
    seen = _look_at_all(checks, batch, path)
    batch = with_column(batch, DIGEST, pa.array(seen.digests, pa.binary()))
    unreadable = np.array([bool(x) for x in seen.reasons], bool)
    for row in np.flatnonzero(unreadable).tolist():
      corrupt[f'{path}, {_name(batch, checks.image, row)}'] = seen.reasons[row]
    check_corrupt(corrupt, checks.max_corrupt)
    reasons = {'unreadable': unreadable}
    arrays = seen.arrays
    if checks.min_side or checks.max_aspect:
      reasons |= filters.size_reasons(
        seen.sizes[:, 0],
        seen.sizes[:, 1],
        checks.min_side,
        checks.max_aspect or np.inf,
      )
    if checks.scores and checks.min_score is not None:
      reasons |= filters.score_reasons(arrays['score'], checks.min_score)
    if checks.scores:
      batch = with_column(batch, SCORE, pa.array(arrays['score'], pa.float32()))
    kept = ~np.any(list(reasons.values()), axis=0)
    batch = funnel.keep('image', batch, reasons)
    arrays = {name: values[kept] for name, values in arrays.items()}
  elif checks.embedding is not None:
    arrays['embedding'], known = _vectors_of(batch.column(checks.embedding))
    batch = funnel.keep('embedding', batch, {'no embedding': ~known})
    arrays['embedding'] = arrays['embedding'][known]
  if (reasons := _evaluation_reasons(checks, batch, arrays)) is not None:
    kept = ~np.any(list(reasons.values()), axis=0)
    batch = funnel.keep('evaluation', batch, reasons)
    arrays = {name: values[kept] for name, values in arrays.items()}
  if 'embedding' in arrays and batch.num_rows:
    vectors = arrays['embedding'].astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(
      pa.array(vectors.ravel()), vectors.shape[1]
    )
    batch = with_column(batch, EMBEDDING, column)
  return batch


def _name(batch: pa.RecordBatch, column: str | None, row: int) -> str:
  value = batch.column(column)[row].as_py() if column else None
  if isinstance(value, Mapping):
    value = value.get('path')
  return value if isinstance(value, str) else f'row {row} of a batch'


def _look_at_all(
  checks: ImageChecks, batch: pa.RecordBatch, path: str
) -> _Seen:
  """Reads and decodes the images of a batch, some at a time."""
  assert checks.image is not None
  seen = _Seen([], [], np.full((batch.num_rows, 2), np.nan), {})
  parts: list[Mapping[str, np.ndarray]] = []
  readable: list[int] = []
  for start in range(0, batch.num_rows, _AT_ONCE):
    rows = batch.slice(start, _AT_ONCE)
    texts = rows.column(checks.text).to_pylist()
    contents: list[bytes] = []
    kept: list[str] = []
    for i, value in enumerate(rows.column(checks.image).to_pylist()):
      try:
        content = _read(value, path)
        seen.sizes[start + i] = decode(content).size
      except CorruptImageError as error:
        seen.reasons.append(str(error))
        seen.digests.append(None)
        continue
      seen.reasons.append('')
      seen.digests.append(hashlib.sha256(content).digest())
      readable.append(start + i)
      contents.append(content)
      kept.append(texts[i])
    if contents:
      parts.append(
        {k: v for look in checks.looks for k, v in look(contents, kept).items()}
      )
  for name in parts[0] if parts else ():
    values = np.concatenate([part[name] for part in parts])
    whole = np.zeros((batch.num_rows, *values.shape[1:]), values.dtype)
    whole[readable] = values
    seen.arrays[name] = whole
  return _with_empty(checks, seen, batch.num_rows)


def _with_empty(checks: ImageChecks, seen: _Seen, rows: int) -> _Seen:
  """Adds the arrays that no image of a batch gave."""
  if checks.scores:
    seen.arrays.setdefault('score', np.full(rows, np.nan, np.float32))
  return seen


def _read(value: Any, table: str) -> bytes:
  """Returns the bytes of an image: of a column, or of a file.

  Args:
    table: the file of the column; others have made paths whole by its folder.
  Raises:
    CorruptImageError: there is none, it cannot be read, or it is elsewhere: a
      URL, unless it lies under the table's folder.
    FailureError: its store does not answer.
  """
  if isinstance(value, Mapping):
    value = value.get('bytes') or value.get('path')
  folder = storage.folder_of(table)
  if isinstance(value, str) and storage.is_remote(folder):
    value = value.removeprefix(f'{folder}/')
  known = value if isinstance(value, bytes | str) else None
  return image_in(known, table, is_path=False)


def _vectors_of(
  column: pa.Array,
) -> tuple[Float[np.ndarray, 'N E'], np.ndarray]:
  """Returns a column of embeddings in unit length, and which rows have one."""
  known = column.is_valid().to_numpy(zero_copy_only=False)
  some = column.filter(pa.array(known))
  flat = some.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
  width = len(flat) // max(len(some), 1)
  if width * len(some) != len(flat):
    raise FailureError('embeddings of different widths in one column.')
  lengths = np.linalg.norm(flat.reshape(len(some), width), axis=1)
  vectors = np.zeros((len(column), width), np.float32)
  vectors[known] = (
    flat.reshape(len(some), width) / np.maximum(lengths, 1e-12)[:, None]
  )
  known[known] = np.isfinite(lengths) & (lengths > 0)
  return vectors, known


def _evaluation_reasons(
  checks: ImageChecks,
  batch: pa.RecordBatch,
  arrays: Mapping[str, np.ndarray],
) -> filters.Reasons | None:
  """Returns which images an evaluation has; None where there is none."""
  reasons: filters.Reasons = {}
  if checks.digests is not None:
    known = load_array(checks.digests)
    digests = batch.column(DIGEST).to_pylist()
    short = np.array([(x or b'')[:16].ljust(16) for x in digests], 'S16')
    halves = np.frombuffer(short.tobytes(), filters.ID_DTYPE)
    has_digest = np.array([x is not None for x in digests], bool)
    reasons['the same file'] = filters.contains(known, halves) & has_digest
  if checks.hashes is not None and 'hash' in arrays:
    known = load_array(checks.hashes)
    near = _near_hashes(arrays['hash'], known, checks.bits)
    reasons['a near perceptual hash'] = near & ~arrays['flat']
  if checks.embeddings is not None and 'embedding' in arrays:
    known = load_array(checks.embeddings)
    reasons[f'a cosine from {checks.near:g}'] = _near_vectors(
      arrays['embedding'], known, checks.near
    )
  if batch.num_rows == 0 and not reasons:
    return None
  return reasons or None


def _near_hashes(
  hashes: np.ndarray, known: np.ndarray, bits: int
) -> np.ndarray:
  near = np.zeros(len(hashes), bool)
  for start in range(0, len(known), _BLOCK):
    differing = hashes[:, None] ^ known[None, start : start + _BLOCK]
    near |= (np.bitwise_count(differing) <= bits).any(axis=1)
  return near


def _near_vectors(
  vectors: np.ndarray, known: np.ndarray, least: float
) -> np.ndarray:
  near = np.zeros(len(vectors), bool)
  for start in range(0, len(known), _BLOCK):
    block = np.asarray(known[start : start + _BLOCK])
    near |= (vectors @ block.T >= least - 1e-5).any(axis=1)
  return near
