"""The perceptual hashes of a source's pictures, kept beside its features.

They depend on the data alone (`data_identity` says which are told apart), so
that all models share them. A file is there whole or not at all; one that is
damaged is made again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt64

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.reading import none_readable
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.data_identity import data_identity
from clip_jax.evaluation.near_duplicates.perceptual_hash import (
  Hashes,
  hash_spectra,
  spectrum,
)
from clip_jax.files import parse_json, read_fields, replacing
from clip_jax.inference.bulk.records import picture_items, refuse_corrupt
from clip_jax.interop.npz_file import read_npz
from clip_jax.parallel.distributed import is_first_process

if TYPE_CHECKING:
  from clip_jax.evaluation.types import Options

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


@dataclasses.dataclass(frozen=True)
class _Notes:
  """What a file says beside its arrays."""

  ids: list[str]
  corrupt: dict[str, str]


def read_hashes(source: Source, options: 'Options') -> HashedPictures:
  """All readable pictures of a source, hashed, or from the cache.

  Args:
    options: `cache`, `max_corrupt_records`, `progress`.
  Raises:
    FailureError: too many pictures are corrupt, or the cache cannot be written.
  """
  if options.cache is None:
    return _hash_all(source, options)
  path = options.cache.folder / 'hashes' / f'{_key_of(source)}.npz'
  found = _read(path)
  if found is None:
    found = _hash_all(source, options)
    if is_first_process():
      _write(path, found)
  refuse_corrupt(source, found.corrupt, options.max_corrupt_records)
  return found


def places_of(source: Source, hashes: HashedPictures) -> list[int]:
  """Where a source has the pictures that were hashed."""
  everything = range(len(source))
  return [i for i in everything if source.id(i) not in hashes.corrupt]


def _hash_all(source: Source, options: 'Options') -> HashedPictures:
  ids: list[str] = []
  corrupt: dict[str, str] = {}
  found: list[Hashes] = []
  items = picture_items(
    source, range(len(source)), {}, options.max_corrupt_records
  )

  spectra: list[np.ndarray] = []
  with contextlib.closing(items):
    for item in options.progress(items, len(source), 'hashes'):
      reason = item.reason
      if not reason:
        try:
          spectra.append(spectrum(item.content))
          ids.append(item.id)
        except CorruptImageError as error:  # which decoding did not notice
          reason = str(error)
      if reason:
        corrupt[item.id] = reason
        refuse_corrupt(source, corrupt, options.max_corrupt_records)
      if len(spectra) == _BLOCK:
        found.append(hash_spectra(spectra))
        spectra = []
  if not ids:
    raise FailureError(none_readable(source.spec, corrupt))
  found.append(hash_spectra(spectra))
  return HashedPictures(
    ids,
    np.concatenate([x.bits for x in found]),
    np.concatenate([x.flat for x in found]),
    corrupt,
  )


def _key_of(source: Source) -> str:
  about = {'version': _VERSION, **data_identity(source)}
  text = json.dumps(about, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> HashedPictures | None:
  """None where there is no such file, or a damaged one."""
  kinds = {'notes': (np.uint8, 1), 'bits': (np.uint64, 1), 'flat': (bool, 1)}
  try:
    arrays = read_npz(path, kinds)
    text = arrays['notes'].tobytes()
    notes = read_fields(path, parse_json(text, os.fspath(path)), _Notes)
  except FailureError:
    return None
  found = HashedPictures(
    notes.ids, arrays['bits'], arrays['flat'], notes.corrupt
  )
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
