"""WORKDIR/tensorboard: the numbers of metrics.jsonl as TensorBoard events.

tensorboardX's `SummaryWriter` writes from a thread: a `flush` leaves events in
its queue, and on a full disk the thread ends and the next writes wait forever.
Its `EventsWriter`, which that thread uses, writes at once and raises.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

FOLDER = 'tensorboard'

# These classes are made when the module runs, so a type checker sees none.
_Event: Any = vars(event_pb2)['Event']
_SessionLog: Any = vars(event_pb2)['SessionLog']


class TensorBoard:
  """A writer of TensorBoard events (see `writers.Writer`)."""

  def __init__(self, workdir: str | os.PathLike):
    """Writes nothing yet: a run without events has no file."""
    self._folder = Path(workdir) / FOLDER
    self._events: EventsWriter | None = None

  def write(
    self, step: SupportsInt, numbers: Mapping[str, SupportsFloat]
  ) -> None:
    """Appends one event a number, and flushes."""
    now = time.time()
    events = self._open()
    for name, value in numbers.items():
      summary = scalar(name, float(value))
      events.write_event(_Event(wall_time=now, step=int(step), summary=summary))
    events.flush()

  def truncate_after(self, step: SupportsInt) -> None:
    """Asks TensorBoard to hide what earlier files say of later steps."""
    if self._events is None and not any(self._folder.glob('events.*')):
      return
    events = self._open()
    start = _SessionLog(status=_SessionLog.SessionStatus.Value('START'))
    # A restart at step T hides the events of steps >= T.
    events.write_event(
      _Event(wall_time=time.time(), step=int(step) + 1, session_log=start)
    )
    events.flush()

  def close(self) -> None:
    """Closes the file; may be called again."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def _open(self) -> EventsWriter:
    if self._events is None:
      self._folder.mkdir(parents=True, exist_ok=True)
      # The library names files by the second: two starts within one would
      # overwrite each other, and readers take files in the order of names.
      self._events = EventsWriter(
        str(self._folder / 'events'), f'.{time.time_ns()}'
      )
    return self._events
