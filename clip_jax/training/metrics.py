"""WORKDIR/metrics.jsonl: the numbers of a run, a line for each time it logs.

A line is one JSON object: `step` (updates done), `time` (unix seconds), and
named numbers such as `train/loss`. One step may have several lines (training,
then its evaluation). JSON has no NaN: a number that is not finite is written as
the string "NaN", "Infinity" or "-Infinity" (as protocol buffers do), and
`read_metrics` returns it as a float.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsInt

from clip_jax.errors import MissingFileError
from clip_jax.files import append, read_bytes, write_bytes

if TYPE_CHECKING:
  from clip_jax.evaluation import Evaluation

FILE = 'metrics.jsonl'
_MAX_BYTES = 2**30  # of metrics.jsonl: millions of steps
_NOT_FINITE = ('NaN', 'Infinity', '-Infinity')

# Before the name of an evaluator, where it measures training pairs.
TRAIN_PREFIX = 'train_'

Row = dict[str, Any]


class MetricsFile:
  """A writer of metrics.jsonl (see `writers.Writer`), flushed at every write.

  A process that is killed in the middle of a write leaves half a line, which
  the next writer removes. A resumed run calls `truncate_after` first.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Opens the file, and makes it and its folder where they are missing."""
    self._path = Path(workdir) / FILE
    self._path.parent.mkdir(parents=True, exist_ok=True)
    _drop_half_line(self._path)
    append(self._path, b'')

  def write(
    self, step: SupportsInt, numbers: Mapping[str, SupportsFloat]
  ) -> None:
    """Appends one line.

    Args:
      step: updates done.
      numbers: named values; anything that `float` takes.
    """
    row = {'step': int(step), 'time': round(time.time(), 3)}
    row |= {name: _to_json(float(value)) for name, value in numbers.items()}
    line = json.dumps(row, allow_nan=False, ensure_ascii=False)
    append(self._path, line.encode() + b'\n')

  def truncate_after(self, step: SupportsInt) -> None:
    """Removes the lines of steps after `step`; the file is replaced whole."""
    rows = _read_lines(self._path)
    kept = [line for line, row in rows if row['step'] <= int(step)]
    if len(kept) < len(rows):
      text = ''.join(f'{line}\n' for line in kept)
      write_bytes(self._path, text.encode())

  def close(self) -> None:
    """Does nothing: each write opens and closes the file."""

  def __enter__(self) -> 'MetricsFile':
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def evaluation_metrics(
  evaluations: Mapping[str, 'Evaluation'],
) -> dict[str, float]:
  """Returns metrics under their names in metrics.jsonl: eval/EVALUATOR/METRIC.

  The chance level of a metric is eval/EVALUATOR/METRIC_chance.
  """
  values = {}
  for task, evaluation in evaluations.items():
    for name, value in evaluation.metrics.items():
      values[f'eval/{task}/{name}'] = value
      if name in evaluation.chance:
        values[f'eval/{task}/{name}_chance'] = evaluation.chance[name]
  return values


def read_metrics(workdir: str | os.PathLike) -> list[Row]:
  """Returns the lines of WORKDIR/metrics.jsonl, in order of writing.

  Lines that are not whole are left out; a missing file has no lines.

  Returns:
    Rows {'step': int, 'time': float, NAME: float, …}.
  """
  rows = [row for _, row in _read_lines(Path(workdir) / FILE)]
  return [
    {name: _from_json(name, value) for name, value in row.items()}
    for row in rows
  ]


def is_evaluated(workdir: str | os.PathLike, step: int) -> bool:
  """Returns whether metrics.jsonl has the evaluation of a step."""
  return any(
    row['step'] == step and any(name.startswith('eval/') for name in row)
    for row in read_metrics(workdir)
  )


def series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
  """Returns the steps at which a number was written, and its values.

  A step that was written twice keeps its last value.
  """
  values = {row['step']: row[name] for row in rows if name in row}
  steps = sorted(values)
  return steps, [values[step] for step in steps]


def _read_lines(path: Path) -> list[tuple[str, Row]]:
  try:
    text = read_bytes(path, _MAX_BYTES).decode('utf-8', 'replace')
  except MissingFileError:
    return []
  rows = []
  for line in text.split('\n'):
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if _is_row(row):
      rows.append((line, row))
  return rows


def _is_row(row: Any) -> bool:
  """Returns whether `row` has the form that `write` writes."""
  if not isinstance(row, dict) or not {'step', 'time'} <= row.keys():
    return False
  step = row['step']
  return (
    isinstance(step, int) and 0 <= step < 2**53
    and isinstance(row['time'], int | float)
    and all(_is_number(value) for value in row.values())
  )  # fmt: skip


def _is_number(value: Any) -> bool:
  if isinstance(value, str):
    return value in _NOT_FINITE
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and abs(value) < 1e300
  )


def _drop_half_line(path: Path) -> None:
  """Removes a last line that was not written whole."""
  if not path.exists():
    return
  data = read_bytes(path, _MAX_BYTES)
  if data and not data.endswith(b'\n'):
    os.truncate(path, data.rfind(b'\n') + 1)


def _to_json(value: float) -> float | str:
  if math.isnan(value):
    return 'NaN'
  if math.isinf(value):
    return 'Infinity' if value > 0 else '-Infinity'
  return value


def _from_json(name: str, value: Any) -> Any:
  if name == 'step':
    return value
  return float(value) if isinstance(value, str) else value
