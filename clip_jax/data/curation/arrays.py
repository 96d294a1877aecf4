"""Arrays in files, whole or not at all, of this machine or remote."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from clip_jax.data import storage


def write_array(values: np.ndarray, path: str) -> None:
  """Writes an array to a .npy file, whole or not at all."""
  with storage.writing(path) as temporary, open(temporary, 'wb') as file:
    np.save(file, values)


def write_counts(counts: Int[np.ndarray, 'K Q'], path: str) -> None:
  """Writes counts that are mostly 0; see `sum_counts`."""
  queries = np.flatnonzero(counts.any(axis=0))
  write_array(np.concatenate([queries[None], counts[:, queries]]), path)


def sum_counts(
  paths: Sequence[str], kinds: int, queries: int
) -> Int[np.ndarray, 'K Q']:
  """Returns the sums of the counts in files."""
  total = np.zeros((kinds, queries), np.int64)
  for path in paths:
    with storage.open_file(path) as file:
      part = np.load(file, allow_pickle=False)
    total[:, part[0]] += part[1:]
  return total


def load_array(path: str) -> np.ndarray:
  """Returns the array of a .npy file; one of this machine stays on the disk."""
  return _load(path, storage.version(path))


@functools.lru_cache(maxsize=8)
def _load(path: str, version: str) -> np.ndarray:
  del version  # a key of the cache
  if not storage.is_remote(path):
    return np.load(path, mmap_mode='r')
  with storage.open_file(path) as file:
    return np.load(file, allow_pickle=False)
