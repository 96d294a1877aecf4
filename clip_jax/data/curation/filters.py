"""Filters of single pairs: each says which rows it drops, and why."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from clip_jax.data import storage
from clip_jax.data.curation.arrays import load_array
from clip_jax.data.curation.hashing import hash_keys
from clip_jax.data.curation.queries import read_lines
from clip_jax.errors import FailureError

Reasons = dict[str, Bool[np.ndarray, ' N']]
# An id as DataComp publishes it: the two halves of 128 bits.
ID_DTYPE = np.dtype('<u8,<u8')
_HEX_DIGITS = 32


def numbers_of(batch: pa.RecordBatch, name: str) -> Float[np.ndarray, ' N']:
  """Returns a column of numbers as float64; nulls are NaN.

  Raises:
    FailureError: it holds something else.
  """
  column = batch.column(name)
  try:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
  except pa.ArrowException as error:
    raise FailureError(
      f'the column {name!r} holds {column.type}, not numbers: {error}.'
    ) from error


def size_reasons(
  widths: Float[np.ndarray, ' N'],
  heights: Float[np.ndarray, ' N'],
  min_side: int,
  max_aspect: float,
) -> Reasons:
  """Drops images that are small or narrow, or whose size is not known.

  Args:
    widths, heights: in pixels; NaN where it is not known.
    min_side: the least of the shorter side.
    max_aspect: the most of the longer side over the shorter.
  """
  shorter, longer = np.fmin(widths, heights), np.fmax(widths, heights)
  known = (widths > 0) & (heights > 0)
  with np.errstate(invalid='ignore', divide='ignore'):
    return {
      'size not known': ~known,
      f'a side below {min_side} pixels': shorter < min_side,
      f'an aspect ratio above {max_aspect:g}': longer > max_aspect * shorter,
    }


def score_reasons(scores: Float[np.ndarray, ' N'], least: float) -> Reasons:
  """Drops pairs whose CLIP score, a cosine, is low or not known."""
  return {
    'no score': np.isnan(scores),
    f'a score below {least:g}': scores < least,
  }


def length_reasons(
  texts: Sequence[str], least: int, most: int, min_words: int
) -> Reasons:
  """Drops texts that are empty, short or long, in characters and words."""
  lengths = np.array([len(text) for text in texts], np.int64)
  reasons: Reasons = {'no text': lengths == 0}
  if least:
    reasons[f'under {least} characters'] = lengths < least
  if most:
    reasons[f'over {most} characters'] = lengths > most
  if min_words > 1:
    words = np.array([text.count(' ') + 1 for text in texts], np.int64)
    reasons[f'under {min_words} words'] = words < min_words
  return reasons


def language_reasons(
  languages: Sequence[str], wanted: Sequence[str]
) -> Reasons:
  """Drops texts of other languages; the reason is the language."""
  array = np.array(languages)
  others = set(languages) - set(wanted)
  return {f'language {x}': array == x for x in sorted(others)}


def write_id_list(paths: Sequence[str], out: str | os.PathLike) -> int:
  """Reads lists of ids, and writes their sorted 128 bits to a .npy file.

  A list is a .npy file as DataComp publishes them (dtype u8,u8), or a text file
  with one id a line.

  Returns:
    How many ids there are.
  Raises:
    FailureError: a file cannot be read, or is of another dtype.
  """
  parts = [_read_ids(path) for path in paths]
  ids = np.concatenate(parts) if len(parts) > 1 else parts[0]
  order = np.lexsort((ids['f1'], ids['f0']))
  with storage.writing(out) as temporary, open(temporary, 'wb') as file:
    np.save(file, ids[order])
  return len(ids)


def _read_ids(path: str) -> np.ndarray:
  with storage.open_file(path) as file:
    if file.peek(6)[:6] != b'\x93NUMPY':
      lines = (line.strip() for line, _ in read_lines(path))
      return np.fromiter((pair for pair in map(_bits_of, lines)), ID_DTYPE)
    try:
      ids = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
      raise FailureError(f'{path}: {error}') from error
  if ids.dtype != ID_DTYPE or ids.ndim != 1:
    raise FailureError(
      f'{path}: a list of {ids.dtype} of shape {ids.shape}; ids are of dtype '
      'u8,u8, as DataComp publishes them.'
    )
  return ids


def _bits_of(text: str) -> tuple[int, int]:
  """Returns the halves of an id: of its 32 hexadecimal digits, or its hash."""
  if len(text) == _HEX_DIGITS:
    try:
      return int(text[:16], 16), int(text[16:], 16)
    except ValueError:
      pass
  digest = hash_keys([text.encode('utf-8', 'surrogatepass')])[0]
  return int.from_bytes(digest[:8], 'little'), int.from_bytes(
    digest[8:], 'little'
  )


def id_reasons(ids: Sequence[Any], path: str) -> Reasons:
  """Drops rows whose id is not in a list of `write_id_list`.

  The list is searched on the disk, and never in memory as a whole.
  """
  listed = load_array(path)
  wanted = np.array([_bits_of(str(x)) for x in ids], ID_DTYPE)
  return {'not in the list of ids': ~contains(listed, wanted)}


def contains(listed: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Returns which ids are in a sorted list, by bisection of all at once."""
  low = np.zeros(len(wanted), np.int64)
  high = np.full(len(wanted), len(listed), np.int64)
  for _ in range(len(listed).bit_length()):
    middle = np.minimum((low + high) // 2, max(len(listed) - 1, 0))
    entry = listed[middle]
    less = (entry['f0'] < wanted['f0']) | (
      (entry['f0'] == wanted['f0']) & (entry['f1'] < wanted['f1'])
    )
    active = low < high
    low = np.where(active & less, middle + 1, low)
    high = np.where(active & ~less, middle, high)
  inside = low < len(listed)
  result = np.zeros(len(wanted), bool)
  result[inside] = listed[low[inside]] == wanted[inside]
  return result
