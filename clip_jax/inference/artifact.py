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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError, UsageError

FORMAT = 'clip_jax.export'
FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
DESCRIPTION = 'description.json'
WEIGHTS = 'weights.safetensors'
README = 'README.md'
PROGRAMS = ('encode_image', 'encode_text')
_MAX_JSON = 1 << 28  # bytes; a description holds its tokenizer


def program_file(name: str) -> str:
  """The file of one of `PROGRAMS`."""
  return f'{name}.jaxexport'


def onnx_file(name: str) -> str:
  """The ONNX file of one of `PROGRAMS`."""
  return f'{name}.onnx'


@dataclasses.dataclass(frozen=True)
class FileEntry:
  """How long a file is, and the SHA-256 of its content in hexadecimal."""

  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What was exported, by which versions, and what its files must hold.

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
    """The content of manifest.json."""
    fields = {'format': FORMAT, 'format_version': FORMAT_VERSION}
    return json.dumps(fields | dataclasses.asdict(self), indent=2) + '\n'


def is_artifact(path: Path) -> bool:
  """Whether a directory was written by `clip-jax export`."""
  try:
    return _read_object(path / MANIFEST).get('format') == FORMAT
  except (OSError, FailureError):
    return False


def read_manifest(path: Path) -> Manifest:
  """The manifest of an exported directory.

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
  try:
    return _parse(fields)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise damaged(path / MANIFEST, f'it lacks or garbles {error}') from error


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
  """description.json, which `Description.from_dict` takes.

  Raises:
    FailureError: it is damaged.
  """
  fields = _read_object(path / DESCRIPTION)
  for part in ('model', 'tokenizer', 'preprocessing'):
    if part not in fields:
      raise damaged(path / DESCRIPTION, f'it has no {part!r}')
  return fields


def file_sha256(path: Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def damaged(file: Path, what: str) -> FailureError:
  """The error for a file that is not as it was exported."""
  return FailureError(f'{file} is damaged: {what}. Export the model again.')


def _parse(fields: dict[str, Any]) -> Manifest:
  files = {}
  for name, entry in fields.pop('files').items():
    # A name leads nowhere but to a file beside the manifest.
    if name != Path(name).name or name in ('', '.', '..', MANIFEST):
      raise ValueError(f'the file name {name!r}')
    files[name] = FileEntry(int(entry['bytes']), str(entry['sha256']))
  for name in (DESCRIPTION, WEIGHTS, *map(program_file, PROGRAMS)):
    if name not in files:
      raise KeyError(name)
  bias = fields.pop('logit_bias')
  return Manifest(
    files=files,
    platforms=tuple(map(str, fields.pop('platforms'))),
    logit_scale=float(fields.pop('logit_scale')),
    logit_bias=None if bias is None else float(bias),
    calling_convention_version=int(fields.pop('calling_convention_version')),
    **fields,
  )


def _read_object(path: Path) -> dict[str, Any]:
  """A JSON object from a file.

  Raises:
    FailureError: the file holds something else.
  """
  if path.is_file() and path.stat().st_size > _MAX_JSON:
    raise damaged(path, f'it is larger than {_MAX_JSON:,} bytes')
  try:
    content = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise damaged(path, 'it is not JSON') from error
  if not isinstance(content, dict):
    raise damaged(path, 'it is not a JSON object')
  return content
