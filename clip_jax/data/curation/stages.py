"""Runs the stages of a curation, which hand rows to each other in files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from clip_jax.data import storage
from clip_jax.data.prepare.engine import Engine, run_stage
from clip_jax.progress import Progress

_MAX_PARTITIONS = 2048


@dataclasses.dataclass(frozen=True)
class Rows:
  """Files of rows between two stages.

  Attributes:
    paths: the files.
    partitions: of each file.
    schema: of the rows.
    is_grouped: whether a task of the next stage reads one partition of all
      files, as rows in it are compared; otherwise it reads one file.
  """

  paths: tuple[str, ...]
  partitions: int
  schema: pa.Schema
  is_grouped: bool

  def tasks(self) -> list[tuple[tuple[str, ...], int]]:
    """Returns the files and the partition that each task reads."""
    if self.is_grouped:
      return [(self.paths, x) for x in range(self.partitions)]
    return [((path,), 0) for path in self.paths]


@dataclasses.dataclass(frozen=True)
class Stages:
  """The stages of one curation.

  Attributes:
    folder: of their files, local or remote.
    engine: what runs their tasks.
    settings: all that their outputs depend on besides the tasks; JSON has it.
    progress: shows how much of a stage is done.
  """

  folder: str
  engine: Engine
  settings: Mapping[str, Any]
  progress: Progress

  def path(self, name: str) -> str:
    """Returns the path of a file of a stage."""
    return storage.join(self.folder, name)

  def run(
    self,
    name: str,
    tasks: Sequence[Any],
    function: Callable[[Any], dict[str, Any]],
    unit: str = 'tasks',
  ) -> list[dict[str, Any]]:
    """Runs a stage; returns the counts of its tasks.

    Args:
      name, function: see `run_stage`.
      tasks: have `out`, and maybe `counts`: the paths of their files.
      unit: of the progress.
    """
    return run_stage(
      name,
      tasks,
      function,
      self.folder,
      engine=self.engine,
      settings=self.settings,
      outputs=lambda task: [
        path for path in (task.out, getattr(task, 'counts', None)) if path
      ],
      progress=self.progress,
      unit=f'{unit} ({name})',
    )


def parts_of(total: int, size: int) -> int:
  """Returns in how many parts of about `size` something is divided."""
  return max(1, min(-(-total // size), _MAX_PARTITIONS))
