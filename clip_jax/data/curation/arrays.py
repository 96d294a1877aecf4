"""Arrays in files, whole or not at all, of this machine or remote."""

import functools

import numpy as np
from jaxtyping import Int

from clip_jax.data import storage


def write_array(values: np.ndarray, path: str) -> None:
  """Writes an array to a .npy file, whole or not at all."""
  with storage.writing(path) as temporary, open(temporary, 'wb') as file:
    np.save(file, values)


def write_counts(counts: Int[np.ndarray, 'K Q'], path: str) -> None:
  """Writes counts that are mostly 0; see `add_counts`."""
  queries = np.flatnonzero(counts.any(axis=0))
  write_array(np.concatenate([queries[None], counts[:, queries]]), path)


def add_counts(counts: Int[np.ndarray, 'K Q'], path: str) -> None:
  """Adds the counts of a file to others."""
  with storage.open_file(path) as file:
    part = np.load(file, allow_pickle=False)
  counts[:, part[0]] += part[1:]


@functools.lru_cache(maxsize=8)
def load_array(path: str) -> np.ndarray:
  """Returns the array of a .npy file; one of this machine stays on the disk."""
  if not storage.is_remote(path):
    return np.load(path, mmap_mode='r')
  with storage.open_file(path) as file:
    return np.load(file, allow_pickle=False)
