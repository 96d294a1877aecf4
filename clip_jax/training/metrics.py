"""The numbers of a run, on disk: WORKDIR/metrics.jsonl and the same numbers as
TensorBoard events under WORKDIR/tensorboard.

A line of metrics.jsonl is one JSON object: `step` (updates done), `time` (unix
seconds), and named numbers such as `train/loss`. One step may have several
lines (training, then its evaluation). JSON has no NaN: a number that is not
finite is written as the string "NaN", "Infinity" or "-Infinity" (as protocol
buffers do), and `read_metrics` gives it back as a float.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from clip_jax.errors import MissingFileError
from clip_jax.files import append, read_bytes

FILE = 'metrics.jsonl'
EVENTS = 'tensorboard'
_MAX_BYTES = 2**30  # of metrics.jsonl: millions of steps
_NOT_FINITE = ('NaN', 'Infinity', '-Infinity')

# Their names come to be when the module runs, so a type checker sees none.
_Event: Any = vars(event_pb2)['Event']
_SessionLog: Any = vars(event_pb2)['SessionLog']

Row = dict[str, Any]


class MetricsWriter:
  """Appends numbers to a run; both files are flushed at every write.

  A process that is killed in the middle of a write leaves half a line, which
  the next writer removes. A resumed run calls `truncate_after` first.
  """

  def __init__(self, workdir: str | os.PathLike):
    self._path = Path(workdir) / FILE
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._events_dir = self._path.parent / EVENTS
    self._events: EventsWriter | None = None  # no events, no file
    _drop_half_line(self._path)
    append(self._path, b'')

  def write(
    self, step: SupportsInt, numbers: Mapping[str, SupportsFloat]
  ) -> None:
    """Appends one line, and one event a number.

    Args:
      step: updates done.
      numbers: named values; anything that `float` takes.
    """
    now = time.time()
    values = {name: float(value) for name, value in numbers.items()}
    row = {'step': int(step), 'time': round(now, 3)}
    row |= {name: _to_json(value) for name, value in values.items()}
    line = json.dumps(row, allow_nan=False, ensure_ascii=False)
    append(self._path, line.encode() + b'\n')
    events = self._open_events()
    for name, value in values.items():
      events.write_event(
        _Event(wall_time=now, step=int(step), summary=scalar(name, value))
      )
    events.flush()

  def truncate_after(self, step: SupportsInt) -> None:
    """Forgets what was written past `step`, as a run does that resumes there.

    metrics.jsonl is rewritten atomically. TensorBoard's files stay as they
    are; an event asks its readers to drop those past `step`.
    """
    rows = _read_lines(self._path)
    step = int(step)
    kept = [line for line, row in rows if row['step'] <= step]
    if len(kept) < len(rows):
      _write_atomically(self._path, ''.join(f'{line}\n' for line in kept))
    if self._events is None and not any(self._events_dir.glob('events.*')):
      return
    events = self._open_events()
    start = _SessionLog(status=_SessionLog.SessionStatus.Value('START'))
    # A restart at step T hides the events of steps >= T.
    events.write_event(
      _Event(wall_time=time.time(), step=step + 1, session_log=start)
    )
    events.flush()

  def close(self) -> None:
    """Closes the files; may be called again."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _open_events(self) -> EventsWriter:
    if self._events is None:
      self._events_dir.mkdir(exist_ok=True)
      # The library names files by the second: two starts within one would
      # overwrite each other, and readers take files in the order of names.
      self._events = EventsWriter(
        str(self._events_dir / 'events'), f'.{time.time_ns()}'
      )
    return self._events


def read_metrics(workdir: str | os.PathLike) -> list[Row]:
  """All lines of WORKDIR/metrics.jsonl, in order of writing.

  Lines that are not whole are left out; no file, no lines.

  Returns:
    Rows {'step': int, 'time': float, NAME: float, …}.
  """
  rows = [row for _, row in _read_lines(Path(workdir) / FILE)]
  return [
    {name: _from_json(name, value) for name, value in row.items()}
    for row in rows
  ]


def series(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
  """The steps at which a number was written, and its values.

  A step that was written twice keeps its last value.
  """
  found = {row['step']: row[name] for row in rows if name in row}
  steps = sorted(found)
  return steps, [found[step] for step in steps]


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
  """Whether it is what `write` writes: a step, a time, and numbers."""
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
  """Ends the file where its last whole line does."""
  if not path.exists():
    return
  data = read_bytes(path, _MAX_BYTES)
  if data and not data.endswith(b'\n'):
    os.truncate(path, data.rfind(b'\n') + 1)


def _write_atomically(path: Path, text: str) -> None:
  partial = path.with_name(f'{path.name}.partial')
  with partial.open('w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


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
