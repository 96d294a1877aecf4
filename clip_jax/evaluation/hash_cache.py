"""The perceptual hashes of a source's pictures, kept beside its features.

They depend on the data alone (`data_identity` says which are told apart), so
that all models share them. A file is there whole or not at all; one that is
damaged is made again.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt64
from PIL import Image

from clip_jax.data.reading import none_readable
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.data_identity import data_identity
from clip_jax.evaluation.perceptual_hash import hash_pictures
from clip_jax.inference.bulk.records import picture_items, refuse_corrupt
from clip_jax.interop.replacing import replacing
from clip_jax.parallel.distributed import is_first

if TYPE_CHECKING:
  from clip_jax.evaluation.encoder import Options

_VERSION = 1  # of the hashes and of their files
_BLOCK = 4096  # pictures whose spectra are in memory at once


@dataclasses.dataclass(frozen=True)
class HashedPictures:
  """N pictures that could be read, in the order of their source.

  Attributes:
    ids: of the records.
    bits: uint64.
    flat: pictures without texture, which are alike whatever they are of.
    corrupt: id to reason, of the pictures that were left out.
  """

  ids: list[str]
  bits: UInt64[np.ndarray, ' N']
  flat: Bool[np.ndarray, ' N']
  corrupt: dict[str, str]


def read_hashes(source: Source, options: 'Options') -> HashedPictures:
  """All readable pictures of a source, hashed, or from the cache.

  Args:
    options: `cache`, `max_corrupt_records`, `watch`.
  Raises:
    FailureError: too many pictures are corrupt, or the cache cannot be written.
  """
  if options.cache is None:
    return _hash_all(source, options)
  path = options.cache.folder / 'hashes' / f'{_key_of(source)}.npz'
  found = _read(path)
  if found is None:
    found = _hash_all(source, options)
    if is_first():
      _write(path, found)
  refuse_corrupt(source, found.corrupt, options.max_corrupt_records)
  return found


def _hash_all(source: Source, options: 'Options') -> HashedPictures:
  ids: list[str] = []
  corrupt: dict[str, str] = {}
  items = picture_items(
    source, range(len(source)), {}, options.max_corrupt_records
  )

  def readable() -> Iterator[Image.Image]:
    for item in options.watch(items, len(source), 'hashes'):
      if item.reason:
        corrupt[item.id] = item.reason
      else:
        ids.append(item.id)
        yield item.content

  pictures = readable()
  bits, flat = [np.empty(0, np.uint64)], [np.empty(0, bool)]
  with contextlib.closing(items):
    while True:
      hashes = hash_pictures(itertools.islice(pictures, _BLOCK))
      if not len(hashes.bits):
        break
      bits.append(hashes.bits)
      flat.append(hashes.flat)
  if not ids:
    raise FailureError(none_readable(source.spec, corrupt))
  return HashedPictures(
    ids, np.concatenate(bits), np.concatenate(flat), corrupt
  )


def _key_of(source: Source) -> str:
  about = {'version': _VERSION, **data_identity(source)}
  text = json.dumps(about, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> HashedPictures | None:
  """None where there is no such file, or a damaged one."""
  try:
    with np.load(path) as file:  # without pickles
      notes = json.loads(file['notes'].tobytes())
      found = HashedPictures(
        notes['ids'], file['bits'], file['flat'], notes['corrupt']
      )
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
    return None
  whole = len(found.ids) == len(found.bits) == len(found.flat)
  return found if whole else None


def _write(path: Path, hashes: HashedPictures) -> None:
  notes = json.dumps({'ids': hashes.ids, 'corrupt': hashes.corrupt})
  with (
    replacing(path, make_folder=True) as temporary,
    open(temporary, 'wb') as file,
  ):
    np.savez(
      file,
      bits=hashes.bits,
      flat=hashes.flat,
      notes=np.frombuffer(notes.encode(), np.uint8),
    )
