"""The writers of a run's numbers and of its report."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, SupportsFloat, SupportsInt

from clip_jax.data.sources import Source
from clip_jax.training.config import Config
from clip_jax.training.metrics import MetricsFile

if TYPE_CHECKING:
  from clip_jax.evaluation import Evaluation
  from clip_jax.inference.model import Model


class Writer(Protocol):
  """Records the numbers of a run; it is opened in the first process only."""

  def __init__(self, workdir: str | os.PathLike): ...

  def truncate_after(self, step: SupportsInt) -> None:
    """Forgets what was written of later steps, as a resumed run needs."""
    ...

  def write(
    self, step: SupportsInt, numbers: Mapping[str, SupportsFloat]
  ) -> None:
    """Records named numbers of a step."""
    ...

  def close(self) -> None:
    """Closes the files."""
    ...


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A run after its last step.

  Attributes:
    folder: its files, on this machine.
    name: the run directory, as the user gave it.
    config: as it ran.
    model: of the last state.
    source: of `evaluation.data`, if any.
    evaluations: of the model, by the name of their evaluator.
  """

  folder: Path
  name: str
  config: Config
  model: 'Model'
  source: Source | None
  evaluations: Mapping[str, 'Evaluation']


@dataclasses.dataclass(frozen=True)
class Outputs:
  """The writers that the loop is given.

  Attributes:
    writers: called with the folder of the run, in the first process.
    report: called with the finished run, in every process.
  """

  writers: Sequence[Callable[[Path], Writer]] = (MetricsFile,)
  report: Callable[[FinishedRun], None] | None = None


def default_outputs(command: str | None = None) -> Outputs:
  """Returns what a run directory promises: metrics.jsonl, events, report.html.

  The loop knows none of the modules behind these, which load here: this is the
  one place where training names a part to its right.

  Args:
    command: how the run was started, for the report.
  """
  from clip_jax.report import training as page
  from clip_jax.training.tensorboard import TensorBoard

  def report(finished: FinishedRun) -> None:
    page.write_report(
      finished.folder,
      finished.model,
      finished.source,
      evaluation=finished.evaluations.get('zero_shot'),
      command=command,
      templates=tuple(finished.config.evaluation.templates),
      seed=finished.config.seed,
      shown_as=finished.name,
    )

  return Outputs((MetricsFile, TensorBoard), report)
