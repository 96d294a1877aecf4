"""The directory that `clip-jax export` writes: its files, and their manifest.

    DIR/
      manifest.json              versions, shapes, sha256 of the other files
      description.json           model, tokenizer, preprocessing
      encode_image.jaxexport     StableHLO, as `jax.export` serializes it
      encode_text.jaxexport
      weights.safetensors        the programs' arguments, by path in the tree
      README.md                  how to run it with jax alone
      encode_image.onnx, encode_text.onnx    where asked for

No model code is imported here: this is the side that only runs programs.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError, MissingFileError, UsageError
from clip_jax.files import check_fields, open_regular, read_json

FORMAT = 'clip_jax.export'
FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
DESCRIPTION = 'description.json'
WEIGHTS = 'weights.safetensors'
README = 'README.md'
PROGRAMS = ('encode_image', 'encode_text')


def program_file(name: str) -> str:
  """Returns the file of one of `PROGRAMS`."""
  return f'{name}.jaxexport'


def onnx_file(name: str) -> str:
  """Returns the ONNX file of one of `PROGRAMS`."""
  return f'{name}.onnx'


@dataclasses.dataclass(frozen=True)
class FileEntry:
  """The size of a file, and the SHA-256 of its content in hexadecimal."""

  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The manifest of an export: versions, and the digests of its files.

  Attributes:
    clip_jax, jax: the versions that wrote it.
    calling_convention_version: of the programs; jax reads a range of them.
    platforms: what the programs were lowered for: 'cpu', 'cuda', 'tpu'.
    dtype: of the towers' arithmetic, 'float32' or 'bfloat16'.
    logit_scale: what cosine similarities are multiplied by.
    logit_bias: what is added to them then; None where the model has none.
    programs: for people and other tools: each program's input and output,
      {'input': {'dtype', 'shape'}, 'output': …}; 'b' is any batch size.
    files: every other file of the directory.
  """

  clip_jax: str
  jax: str
  calling_convention_version: int
  platforms: tuple[str, ...]
  dtype: str
  logit_scale: float
  logit_bias: float | None
  programs: Mapping[str, Any]
  files: Mapping[str, FileEntry]

  def to_json(self) -> str:
    """Returns the content of manifest.json."""
    fields = {'format': FORMAT, 'format_version': FORMAT_VERSION}
    return json.dumps(fields | dataclasses.asdict(self), indent=2) + '\n'


def is_artifact(path: Path) -> bool:
  """Returns whether a directory was written by `clip-jax export`."""
  try:
    return _read_object(path / MANIFEST).get('format') == FORMAT
  except FailureError:
    return False


def read_manifest(path: Path) -> Manifest:
  """Returns the manifest of an exported directory.

  Raises:
    UsageError: `path` is no such directory, or one of a later format.
    FailureError: the manifest is damaged.
  """
  if not path.is_dir() or not (path / MANIFEST).is_file():
    raise UsageError(
      f'{path} is not a directory that `clip-jax export` wrote: it has no '
      f'{MANIFEST}.'
    )
  fields = _read_object(path / MANIFEST)
  if fields.pop('format', None) != FORMAT:
    raise UsageError(f'{path / MANIFEST} is not of `clip-jax export`.')
  version = fields.pop('format_version', None)
  if version != FORMAT_VERSION:
    raise UsageError(
      f'{path} has format version {version!r}, and this clip_jax reads '
      f'{FORMAT_VERSION}: install the one that wrote it.'
    )
  return _parse(path / MANIFEST, fields)


def verify(path: Path, manifest: Manifest) -> None:
  """Reads every file and compares it with the manifest.

  Raises:
    FailureError: one is missing, cut off, or altered.
  """
  for name, entry in manifest.files.items():
    file = path / name
    if not file.is_file():
      raise damaged(file, 'it is missing')
    size = file.stat().st_size
    if size != entry.bytes:
      raise damaged(
        file, f'it has {size:,} bytes where {MANIFEST} says {entry.bytes:,}'
      )
    if file_sha256(file) != entry.sha256:
      raise damaged(file, f'its sha256 is not the one in {MANIFEST}')


def read_description(path: Path) -> dict[str, Any]:
  """Returns what description.json holds, for `Description.from_dict`.

  Raises:
    FailureError: it is damaged.
  """
  fields = _read_object(path / DESCRIPTION)
  for part in ('model', 'tokenizer', 'preprocessing'):
    if part not in fields:
      raise damaged(path / DESCRIPTION, f'it has no {part!r}')
  return fields


def file_sha256(path: Path) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  file: Any  # what `file_digest` takes has no name in typing
  with open_regular(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def damaged(file: Path, what: str) -> FailureError:
  """Returns the error for a file that is not as it was exported."""
  return FailureError(f'{file} is damaged: {what}. Export the model again.')


def _parse(path: Path, fields: dict[str, Any]) -> Manifest:
  """Returns a manifest from the object in its file.

  Raises:
    FailureError: a field is missing or of another type.
  """
  _check(path, fields, _FIELDS)
  unknown = fields.keys() - _FIELDS.keys()
  if unknown:
    raise damaged(path, f'it has the unknown field {min(unknown)!r}')
  for name in ('logit_scale', 'logit_bias'):
    if fields[name] is not None and not math.isfinite(fields[name]):
      raise damaged(path, f'its {name} is {fields[name]}')
  files = {}
  for name, entry in fields['files'].items():
    # A name with a path in it could lead out of the directory.
    if name != Path(name).name or name in ('', '.', '..', MANIFEST):
      raise damaged(path, f'it lacks or garbles the file name {name!r}')
    _check(path, entry, {'bytes': int, 'sha256': str})
    files[name] = FileEntry(entry['bytes'], entry['sha256'])
  for name in (DESCRIPTION, WEIGHTS, *map(program_file, PROGRAMS)):
    if name not in files:
      raise damaged(path, f'it lacks or garbles {name!r}')
  bias = fields['logit_bias']
  return Manifest(
    **{
      **fields,
      'files': files,
      'platforms': tuple(map(str, fields['platforms'])),
      'logit_scale': float(fields['logit_scale']),
      'logit_bias': None if bias is None else float(bias),
    }
  )


_FIELDS: dict[str, Any] = {
  'clip_jax': str,
  'jax': str,
  'calling_convention_version': int,
  'platforms': list,
  'dtype': str,
  'logit_scale': (int, float),
  'logit_bias': (int, float, type(None)),
  'programs': dict,
  'files': dict,
}


def _check(path: Path, content: Any, fields: Mapping[str, Any]) -> None:
  try:
    check_fields(path.name, content, fields)
  except FailureError as error:
    raise damaged(path, f'it lacks or garbles something ({error})') from error


def _read_object(path: Path) -> dict[str, Any]:
  """Returns a JSON object from a file.

  Raises:
    MissingFileError: there is no such file.
    FailureError: it holds something else.
  """
  try:
    content = read_json(path)
  except MissingFileError:
    raise
  except FailureError as error:
    raise damaged(path, f'it is not JSON ({error})') from error
  if not isinstance(content, dict):
    raise damaged(path, 'it is not a JSON object')
  return content
