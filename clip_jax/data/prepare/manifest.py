"""The manifest of a folder of shards: the checksum of every file in it."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clip_jax.data import storage
from clip_jax.errors import FailureError, MissingFileError
from clip_jax.files import MAX_TEXT_BYTES, check_fields, parse_json, to_bytes
from clip_jax.progress import Progress, no_progress

MANIFEST = 'manifest.json'


def file_entry(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the size and the SHA-256 of a file, as a manifest has them.

  Raises:
    MissingFileError, FailureError: it is not there, or cannot be read.
  """
  with storage.open_file(path) as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()  # pyright: ignore[reportArgumentType]
  return {'bytes': storage.size(path), 'sha256': digest}


def write_manifest(
  folder: str, settings: dict[str, Any], files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """Writes the manifest of a folder, and returns it.

  Args:
    settings: all that the files depend on.
    files: by name, what `file_entry` returns, and whatever else is known.
  """
  manifest = {'settings': settings, 'files': files}
  storage.write_bytes(storage.join(folder, MANIFEST), to_bytes(manifest))
  return manifest


def read_manifest(folder: str) -> dict[str, Any]:
  """Reads the manifest of a folder.

  Raises:
    MissingFileError: there is none.
    FailureError: it is damaged.
  """
  path = storage.join(folder, MANIFEST)
  content = parse_json(storage.read_all(path, MAX_TEXT_BYTES), path)
  manifest = check_fields(path, content, {'settings': dict, 'files': dict})
  for name, entry in manifest['files'].items():
    check_fields(f'{path}, {name}', entry, {'bytes': int, 'sha256': str})
    if os.path.basename(name) != name:
      raise FailureError(f'{path} names {name!r}, which is not in its folder.')
  return manifest


def missing_files(folder: str, manifest: dict[str, Any]) -> list[str]:
  """Returns the files of a manifest that are not there in their size."""
  there = set(storage.list_folder(folder))
  return [
    name
    for name, entry in manifest['files'].items()
    if name not in there
    or storage.size(storage.join(folder, name)) != entry['bytes']
  ]


def verify(
  folder: str, *, workers: int = 1, progress: Progress = no_progress
) -> list[str]:
  """Compares all files of a folder with its manifest.

  Returns:
    A line for each that differs, or is missing.
  Raises:
    MissingFileError, FailureError: there is no manifest, or it is damaged.
  """
  files = read_manifest(folder)['files']

  def compare(name: str) -> str:
    try:
      entry = file_entry(storage.join(folder, name))
    except MissingFileError:
      return f'{name} is missing'
    except FailureError as error:
      return str(error).rstrip('.')
    own = files[name]
    if entry['bytes'] != own['bytes']:
      return f'{name} has {entry["bytes"]:,} bytes, not {own["bytes"]:,}'
    same = entry['sha256'] == own['sha256']
    return '' if same else f'{name} has another content'

  with ThreadPoolExecutor(workers) as pool:
    lines = pool.map(compare, files)
    return [line for line in progress(lines, len(files), 'files') if line]
