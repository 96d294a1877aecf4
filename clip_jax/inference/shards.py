"""Stores arrays on disk in shards, so that stopped work can go on.

```
FOLDER/
  manifest.json  all that the arrays depend on, and whatever else is noted
  00000000.npz   one a shard: its arrays, and notes as JSON
```

A shard is a run of consecutive records, either images or texts. Its file is
there whole or not at all, so a process can be killed at any moment: the shards
that are there need not be made again. Several processes may fill one folder.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax.errors import FailureError, MissingFileError
from clip_jax.files import (
  check_fields,
  parse_json,
  read_fields,
  read_json,
  replacing,
  to_bytes,
  write_bytes,
)
from clip_jax.interop.npz_file import read_npz

Notes = TypeVar('Notes')  # a dataclass of what JSON has


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
  """Records [start, stop) of the images or of the texts.

  Attributes:
    number: its index among all shards, which is the order of their rows.
    kind: 'image' or 'text'.
  """

  number: int
  kind: str
  start: int
  stop: int

  @property
  def file_name(self) -> str:
    """The name of its file in the folder of the store."""
    return f'{self.number:08}.npz'

  def __len__(self) -> int:
    return self.stop - self.start


def make_shards(
  kind: str, records: int, shard_rows: int, first: int = 0
) -> list[Shard]:
  """Divides records of one kind into shards, the last of which may be smaller.

  Args:
    first: the number of the first shard.
  """
  starts = range(0, records, shard_rows)
  return [
    Shard(number, kind, start, min(records, start + shard_rows))
    for number, start in enumerate(starts, first)
  ]


def records_of(shards: Iterable[Shard]) -> Iterable[int]:
  """Returns the numbers of the records of some shards, in order."""
  return (i for shard in shards for i in range(shard.start, shard.stop))


class ShardStore(Generic[Notes]):
  """The shards of one job in a folder.

  Attributes:
    path: the folder; what is written first makes it.
  """

  def __init__(
    self,
    path: Path,
    notes: type[Notes],
    arrays: Mapping[str, tuple[type, int]],
    *,
    manifest: str = 'manifest.json',
  ):
    """Touches nothing yet.

    Args:
      notes: the dataclass of what a shard says beside its arrays. No field is
        named as one of `Shard`.
      arrays: the dtype and the number of axes of each array of a shard.
      manifest: the name of that file.
    """
    self.path = path
    self._notes = notes
    self._arrays = dict(arrays)
    self._manifest = path / manifest

  def read_manifest(self) -> Any:
    """Returns what the manifest holds; None where there is none.

    Raises:
      FailureError: it cannot be read.
    """
    try:
      return read_json(self._manifest)
    except MissingFileError:
      return None

  def write_manifest(self, content: dict[str, Any]) -> None:
    """Writes the manifest, whole or not at all.

    Raises:
      FailureError: it cannot be written.
    """
    write_bytes(self._manifest, to_bytes(content), make_folder=True)

  def has(self, shard: Shard) -> bool:
    """Returns whether a shard is there."""
    return (self.path / shard.file_name).exists()

  def write(
    self, shard: Shard, notes: Notes, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Writes a shard, whole or not at all, also when the power fails.

    Raises:
      FailureError: it cannot be written, as where the disk is full.
    """
    fields = dataclasses.asdict(notes)  # pyright: ignore[reportArgumentType]
    text = json.dumps({**dataclasses.asdict(shard), **fields})
    members = {**arrays, 'notes': np.frombuffer(text.encode(), np.uint8)}
    with (
      replacing(self.path / shard.file_name, make_folder=True) as temporary,
      open(temporary, 'wb') as file,
    ):
      np.savez(file, allow_pickle=False, **members)

  def read_notes(self, shard: Shard) -> Notes:
    """Reads what a shard says beside its arrays.

    Raises:
      MissingFileError: it is not there.
      FailureError: it is damaged; the message says what to remove.
    """
    path = self.path / shard.file_name
    text = self._read(shard, {'notes': (np.uint8, 1)})['notes'].tobytes()
    try:
      values = check_fields(path, parse_json(text, f'{path}, notes'), {})
      for name, value in dataclasses.asdict(shard).items():
        if values.pop(name, None) != value:
          raise FailureError('it has other records')
      return read_fields(path, values, self._notes)
    except FailureError as error:
      raise self.damaged(shard, str(error)) from error

  def read_arrays(self, shard: Shard) -> dict[str, np.ndarray]:
    """Reads the arrays of a shard.

    Raises:
      MissingFileError, FailureError: as `read_notes`.
    """
    return self._read(shard, self._arrays)

  def read_all(
    self, shards: Sequence[Shard]
  ) -> dict[int, tuple[Notes, dict[str, np.ndarray]]]:
    """Reads the shards that are there, whole, for every process of the job.

    A damaged one is left out, and so is made again. Where JAX is distributed,
    all processes call this together.

    Returns:
      By the number of the shard: its notes and arrays.
    """
    contents = {}
    for shard in shards:
      try:
        notes, arrays = self.read_notes(shard), self.read_arrays(shard)
        contents[shard.number] = notes, arrays
      except (FailureError, OSError):
        continue
    if jax.process_count() == 1:
      return contents
    here = np.array([shard.number in contents for shard in shards])
    everywhere = multihost_utils.process_allgather(here).all(axis=0)
    numbers = [shard.number for shard in shards]
    return {
      number: contents[number]
      for number, there in zip(numbers, everywhere, strict=True)
      if there
    }

  def damaged(self, shard: Shard, reason: str) -> FailureError:
    """Returns the error of a shard that is not as it was written."""
    return FailureError(
      f'{self.path / shard.file_name} is damaged ({reason}): remove it, and '
      'the same command makes it again.'
    )

  def _read(
    self, shard: Shard, arrays: Mapping[str, tuple[type, int]]
  ) -> dict[str, np.ndarray]:
    try:
      return read_npz(self.path / shard.file_name, arrays)
    except MissingFileError:
      raise
    except FailureError as error:
      raise self.damaged(shard, str(error)) from error
