"""The work of one job in parts: which records each has, and its file.

A part is a run of consecutive records, either pictures or texts. Its file
holds the rows of those that could be read, and why the others could not.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from clip_jax.errors import FailureError, MissingFileError
from clip_jax.files import check_fields, parse_json, read_fields
from clip_jax.inference.embeddings import DIGEST_BYTES, Rows
from clip_jax.interop.npz_file import read_npz

Kind = TypeVar('Kind')  # a dataclass of notes


@dataclasses.dataclass(frozen=True)
class Part:
  """Records [start, stop) of the pictures or of the texts.

  Attributes:
    number: its place among all parts, which is the order of the rows.
    kind: 'image' or 'text'.
  """

  number: int
  kind: str
  start: int
  stop: int

  @property
  def file_name(self) -> str:
    """Of its file in the folder of parts."""
    return f'{self.number:08}.npz'

  def __len__(self) -> int:
    return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Plan:
  """All parts of a job: first the pictures', then the texts'.

  Attributes:
    images, texts: how many records there are.
    part_rows: records a part; the last of each kind may have fewer.
  """

  images: int
  texts: int
  part_rows: int

  def __len__(self) -> int:
    return self._image_parts + -(-self.texts // self.part_rows)

  def __getitem__(self, number: int) -> Part:
    if not 0 <= number < len(self):
      raise IndexError(number)
    kind, total, place = 'image', self.images, number
    if number >= self._image_parts:
      kind, total, place = 'text', self.texts, number - self._image_parts
    start = place * self.part_rows
    return Part(number, kind, start, min(total, start + self.part_rows))

  def __iter__(self) -> Iterator[Part]:
    return (self[number] for number in range(len(self)))

  @property
  def _image_parts(self) -> int:
    return -(-self.images // self.part_rows)


@dataclasses.dataclass(frozen=True)
class Notes:
  """What a finished part says beside its vectors.

  Attributes:
    ids, captions: of its rows.
    digests: of what they were made of, one after another, in hexadecimal.
    corrupt: id to reason, of the records without a row.
    truncated: texts that were cut to the model's context.
  """

  ids: list[str]
  captions: list[str]
  digests: str
  corrupt: dict[str, str]
  truncated: int


def write_part(
  folder: Path, part: Part, notes: Any, vectors: np.ndarray
) -> None:
  """Writes a part's file under another name and moves it into its place.

  It is there whole or not at all, also when the power fails.

  Args:
    notes: a dataclass of what JSON has; no field is named as one of `Part`.
  Raises:
    OSError: it cannot be written.
  """
  text = json.dumps({**dataclasses.asdict(part), **dataclasses.asdict(notes)})
  # Processes on several hosts may have one process id.
  temporary = folder / f'{part.file_name}.{uuid.uuid4().hex}.tmp'
  try:
    with open(temporary, 'wb') as file:
      np.savez(
        file, vectors=vectors, notes=np.frombuffer(text.encode(), np.uint8)
      )
      sync(file)
    os.replace(temporary, folder / part.file_name)
  finally:
    temporary.unlink(missing_ok=True)


def read_notes(folder: Path, part: Part) -> Notes:
  """What a part's file says, without its vectors.

  Raises:
    FailureError: see `read_rows`.
  """
  notes = read_notes_as(Notes, folder, part)
  try:
    digests = len(digests_of(notes))
  except ValueError as error:
    raise _damaged(folder, part, 'its digests are none') from error
  if not len(notes.ids) == len(notes.captions) == digests:
    raise _damaged(folder, part, 'its columns are not of one length')
  return notes


def read_notes_as(kind: type[Kind], folder: Path, part: Part) -> Kind:
  """The same of a part that was written with notes of another dataclass.

  Raises:
    FailureError: see `read_rows`.
  """
  path = folder / part.file_name
  text = _member(folder, part, 'notes', np.uint8, 1).tobytes()
  try:
    values = check_fields(path, parse_json(text, f'{path}, notes'), {})
    for name, value in dataclasses.asdict(part).items():
      if values.pop(name, None) != value:
        raise FailureError('it has other records')
    return read_fields(path, values, kind)
  except FailureError as error:
    raise _damaged(folder, part, str(error)) from error


def read_rows(folder: Path, part: Part, *, vectors: bool = True) -> Rows:
  """A part's rows; without `vectors`, these are [N, 0].

  Raises:
    FailureError: the file is damaged; the message says what to remove.
  """
  notes = read_notes(folder, part)
  values = np.empty((len(notes.ids), 0), np.float32)
  if vectors:
    values = read_vectors(folder, part)
  if len(values) != len(notes.ids):
    raise _damaged(folder, part, 'it has not a vector for each id')
  return Rows(
    ids=notes.ids,
    kinds=[part.kind] * len(notes.ids),
    captions=notes.captions,
    vectors=values,
    digests=digests_of(notes),
  )


def digests_of(notes: Notes) -> UInt8[np.ndarray, 'N 16']:
  """The digests of a part's rows."""
  values = np.frombuffer(bytes.fromhex(notes.digests), np.uint8)
  return values.reshape(-1, DIGEST_BYTES)


def read_vectors(folder: Path, part: Part) -> np.ndarray:
  """A part's vectors, float32 [N, E].

  Raises:
    FailureError: see `read_rows`.
  """
  return _member(folder, part, 'vectors', np.float32, 2)


def read_dims(folder: Path, part: Part) -> int:
  """E, the width of a part's vectors."""
  return read_vectors(folder, part).shape[1]


def sync(file: Any) -> None:
  """Has a file's bytes on the disk before anything relies on them."""
  file.flush()
  os.fsync(file.fileno())


def _member(
  folder: Path, part: Part, name: str, dtype: type, rank: int
) -> np.ndarray:
  try:
    array = read_npz(folder / part.file_name, {name: (dtype, rank)})[name]
  except MissingFileError:
    raise
  except FailureError as error:
    raise _damaged(folder, part, str(error)) from error
  return array


def _damaged(folder: Path, part: Part, reason: str) -> FailureError:
  return FailureError(
    f'{folder / part.file_name} is damaged ({reason}): remove it, and the '
    'same command makes it again.'
  )
