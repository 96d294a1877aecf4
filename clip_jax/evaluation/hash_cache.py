"""The perceptual hashes of a source's pictures, kept beside its features.

They depend on the pictures alone, so that all models share them. A file is
there whole or not at all; one that is damaged is made again.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt64

from clip_jax.data.images import CorruptImageError
from clip_jax.data.reading import too_many_corrupt
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.perceptual_hash import hash_pictures
from clip_jax.evaluation.pictures import Pictures

if TYPE_CHECKING:
  from clip_jax.evaluation.encoder import Options

_VERSION = 1  # of the hashes and of their files
_BLOCK = 4096  # pictures whose spectra are in memory at once
_SAMPLES = 256  # records, about, that tell two sources apart


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
    _write(path, found)
  if len(found.corrupt) > options.max_corrupt_records:
    raise FailureError(
      too_many_corrupt(source.spec, options.max_corrupt_records, found.corrupt)
    )
  return found


def _hash_all(source: Source, options: 'Options') -> HashedPictures:
  pictures = Pictures(source, options.max_corrupt_records)
  watched = iter(options.watch(pictures, len(source), 'hashes'))
  bits, flat = [np.empty(0, np.uint64)], [np.empty(0, bool)]
  while True:
    hashes = hash_pictures(itertools.islice(watched, _BLOCK))
    if not len(hashes.bits):
      break
    bits.append(hashes.bits)
    flat.append(hashes.flat)
  return HashedPictures(
    [record['id'] for record in pictures.records],
    np.concatenate(bits),
    np.concatenate(flat),
    pictures.corrupt,
  )


def _key_of(source: Source) -> str:
  """The SPEC, its size, and records from all over it.

  Not all of them: to read a large source takes as long as to hash it. One that
  changes elsewhere, under the same SPEC, is not told apart.
  """
  count = len(source)
  digest = hashlib.sha256(f'{_VERSION} {source.spec} {count}\n'.encode())
  for index in range(0, count, max(1, count // _SAMPLES)):
    digest.update(f'{source.id(index)}\n'.encode('utf-8', 'surrogatepass'))
    try:
      digest.update(hashlib.sha256(source[index]['image']).digest())
    except CorruptImageError:
      digest.update(b'unreadable')
  return digest.hexdigest()[:32]


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
  """Under another name first, which no other process or host has."""
  notes = json.dumps({'ids': hashes.ids, 'corrupt': hashes.corrupt})
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'wb') as file:
      np.savez(
        file,
        bits=hashes.bits,
        flat=hashes.flat,
        notes=np.frombuffer(notes.encode(), np.uint8),
      )
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    reason = (error.strerror or str(error)).lower()
    raise FailureError(f'{path} could not be written: {reason}.') from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
