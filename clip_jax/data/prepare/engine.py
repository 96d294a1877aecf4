"""Runs pipelines: stages of independent tasks that read and write files.

A stage maps a plain function over its tasks. What has to be grouped is written
to files by one stage, partitioned by a hash, and read by the next, so that no
engine ever shuffles or holds a data set in memory. `FOLDER/.stages/NAME/` says
how far a stage is:

    stage.json     its settings and the number of its tasks
    0000012.json   task 12 is done: the task, and the counts that it returned

A killed pipeline goes on where it was: what is done is not done again, and what
was begun with other settings or inputs is refused, never mixed.
"""

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from clip_jax.data import storage
from clip_jax.data.decoding import asked_megapixels, limit_megapixels
from clip_jax.data.prepare.local_engine import Outcome
from clip_jax.errors import (
  FailureError,
  MissingFileError,
  UsageError,
  check_choice,
  one_line,
  reason_of,
)
from clip_jax.files import check_fields, holding_lock, parse_json, to_bytes
from clip_jax.progress import Progress, no_progress

Task = TypeVar('Task')
Counts = dict[str, Any]

# The engines, and the module of this package that runs tasks on each.
ENGINES = {
  'local': 'local_engine',
  'beam': 'beam_engine',
  'ray': 'ray_engine',
}
STAGES = '.stages'  # the folder of what is known of stages
_MAX_MARKER_BYTES = 2**24
_READERS = 16  # markers that are read at a time, as a bucket answers slowly


@dataclasses.dataclass(frozen=True)
class Engine:
  """Names what runs the tasks of a stage; all engines write the same bytes.

  Attributes:
    name: 'local', processes of this machine; 'beam', Apache Beam; 'ray', Ray
      Data.
    workers: tasks at a time; 0 is one for each core.
    beam_options: options of Beam, such as '--runner=DataflowRunner'; without a
      runner Beam runs on this machine.
  """

  name: str = 'local'
  workers: int = 0
  beam_options: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    """Checks the settings.

    Raises:
      UsageError: an unknown engine, a negative number of workers, or options of
        another engine.
    """
    check_choice('--engine', self.name, ENGINES)
    if self.workers < 0:
      raise UsageError(f'--workers={self.workers}: use 0 (all cores) or more.')
    if self.beam_options and self.name != 'beam':
      raise UsageError('--beam_options are of --engine=beam.')

  def worker_count(self) -> int:
    """Returns the number of tasks that run at a time."""
    return self.workers or len(os.sched_getaffinity(0))


LOCAL = Engine()


@dataclasses.dataclass(frozen=True)
class Job:
  """One task as an engine runs it; it pickles.

  Attributes:
    name: says in errors which task it is.
    function, task: are called, and called with.
    marker: the path of the file that says that the task is done.
    max_megapixels: see `limit_megapixels`; the environment that has it is not
      that of other machines.
  """

  name: str
  function: Callable[[Any], Counts]
  task: Any
  marker: str
  max_megapixels: float | None = None

  def run(self) -> str:
    """Does the task and writes its marker.

    Returns:
      '', or why it failed.
    """
    try:
      limit_megapixels(self.max_megapixels)
      counts = self.function(self.task)
      content = {'task': as_json(self.task), 'counts': counts}
      storage.write_bytes(self.marker, to_bytes(content))
    except (FailureError, UsageError) as error:
      return f'{self.name}: {error}'
    except OSError as error:
      where = f'{error.filename}: ' if error.filename else ''
      return f'{self.name}: {where}{reason_of(error)}.'
    except Exception as error:  # a fault in the function; it gets its name
      return f'{self.name}: {type(error).__name__}: {one_line(str(error))}'
    return ''


def run_stage(
  name: str,
  tasks: Sequence[Task],
  function: Callable[[Task], Counts],
  folder: str | os.PathLike,
  *,
  engine: Engine = LOCAL,
  settings: Mapping[str, Any] | None = None,
  outputs: Callable[[Task], Sequence[str]] = lambda task: (),
  redo: Callable[[Counts], bool] = lambda counts: False,
  progress: Progress = no_progress,
  unit: str = 'tasks',
  size: Callable[[Task], int] = lambda task: 1,
) -> list[Counts]:
  """Runs a function for each task, and returns what it returned for each.

  Args:
    name: of the stage, unique in its pipeline, and a file name.
    tasks: independent of each other. A task pickles, and is a dataclass or
      another value that JSON has; it names its inputs, and what changes when
      they do, such as their sizes.
    function: of a module (or a partial of one). It reads files and writes files
      whole or not at all (`storage.writing`), is the same each time, and
      returns counts that JSON has.
    folder: of the pipeline, local or remote; engines on many machines need one
      that all of them reach.
    engine: what runs the tasks.
    settings: all else that the outputs depend on.
    outputs: the files that a task writes. Where one of them has gone, its task
      is done again.
    redo: whether a task that returned such counts is done again, too.
    progress: shows how much is done.
    unit: of the progress: 'records'.
    size: the number of units of a task.
  Returns:
    The counts in the order of the tasks, also of tasks done before.
  Raises:
    UsageError: the folder was begun with other settings or inputs; the message
      names the first that differs.
    FailureError: a task failed; the message names it and its reason. Or another
      process works in the folder.
  """
  folder = os.fspath(folder)
  stage = storage.join(folder, STAGES, name)
  with _lock(stage):
    _check_settings(folder, name, stage, len(tasks), settings or {})
    counts = _read_markers(folder, name, stage, tasks)
    again = [index for index, own in counts.items() if redo(own)]
    again += _without_outputs(stage, [outputs(task) for task in tasks])
    for index in again:
      counts.pop(index, None)
    limit = asked_megapixels()
    jobs = [
      Job(f'{name} {index} ({_label(task)})', function, task, marker, limit)
      for index, task in enumerate(tasks)
      for marker in [storage.join(stage, _marker_name(index))]
      if index not in counts
    ]
    if jobs:
      sizes = [size(task) for task in tasks]
      left = [sizes[i] for i in range(len(tasks)) if i not in counts]

      def show(outcomes: Iterable[Outcome]) -> Iterable[Outcome]:
        return progress(
          outcomes,
          sum(sizes),
          unit,
          done=sum(sizes) - sum(left),
          size=lambda outcome: left[outcome.job],
        )

      _run(jobs, engine, stage, show)
      counts |= _read_markers(folder, name, stage, tasks)
  return [counts[index] for index in range(len(tasks))]


def _run(
  jobs: Sequence[Job],
  engine: Engine,
  stage: str,
  show: Callable[[Iterable[Outcome]], Iterable[Outcome]],
) -> None:
  """Runs jobs until all are done, or one has failed.

  Raises:
    FailureError: one has failed.
  """
  for job in jobs:  # an error of pickling later would name no task
    try:
      pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
      raise FailureError(f'{job.name} does not pickle: {error}') from error
  module = importlib.import_module(f'{__package__}.{ENGINES[engine.name]}')
  workers = engine.worker_count()
  if engine.name == 'beam':
    outcomes = module.run(jobs, workers, stage, engine.beam_options)
  else:
    outcomes = module.run(jobs, workers)
  with contextlib.closing(outcomes):
    for outcome in show(outcomes):
      if outcome.reason:
        raise FailureError(outcome.reason)


@contextlib.contextmanager
def _lock(stage: str) -> Iterator[None]:
  """Keeps other processes of this machine out of a local stage.

  Raises:
    FailureError: another process has it, or it cannot be written.
  """
  if storage.is_remote(stage):
    yield
    return
  try:
    os.makedirs(stage, exist_ok=True)
  except OSError as error:
    raise FailureError(f'{stage}: {reason_of(error)}.') from error
  held = FailureError(
    f'another process works in {stage}: wait for it, or end it.'
  )
  with holding_lock(os.path.join(stage, '.lock'), held):
    yield


def _check_settings(
  folder: str, name: str, stage: str, tasks: int, settings: Mapping[str, Any]
) -> None:
  """Writes what a stage depends on, or compares it with what was written.

  Raises:
    UsageError: it differs.
  """
  path = storage.join(stage, 'stage.json')
  wanted = {**as_json(settings), 'number of tasks': tasks}
  try:
    text = storage.read_all(path, _MAX_MARKER_BYTES)
  except MissingFileError:
    storage.write_bytes(path, to_bytes(wanted))
    return
  begun = check_fields(path, parse_json(text, path), {})
  refuse_other_settings(f'{folder} (stage {name})', begun, wanted)


def refuse_other_settings(
  where: str, begun: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Refuses to go on in a folder that was begun with other settings.

  Args:
    where: names the folder in the error.
    begun, wanted: settings as JSON has them.
  Raises:
    UsageError: they differ; the message names the first that does.
  """
  for key in dict.fromkeys([*wanted, *begun]):
    old, new = begun.get(key), wanted.get(key)
    if old != new:
      raise UsageError(
        f'{where} was begun with {key} {_short(old)}, and it is now '
        f'{_short(new)}: remove the folder, or name another.'
      )


def _read_markers(
  folder: str, name: str, stage: str, tasks: Sequence[Any]
) -> dict[int, Counts]:
  """Returns the counts of the tasks that are done, by the task's index.

  Raises:
    UsageError: a task was done with other inputs.
    FailureError: a marker is damaged.
  """
  names = set(storage.list_folder(stage))
  done = [i for i in range(len(tasks)) if _marker_name(i) in names]

  def read(index: int) -> Counts:
    path = storage.join(stage, _marker_name(index))
    text = storage.read_all(path, _MAX_MARKER_BYTES)
    types = {'task': object, 'counts': dict}
    marker = check_fields(path, parse_json(text, path), types)
    key = f'task {index}'
    begun, wanted = {key: marker['task']}, {key: as_json(tasks[index])}
    refuse_other_settings(f'{folder} (stage {name})', begun, wanted)
    return marker['counts']

  with ThreadPoolExecutor(_READERS) as pool:
    return dict(zip(done, pool.map(read, done), strict=True))


def _marker_name(index: int) -> str:
  return f'{index:07}.json'


def _without_outputs(stage: str, outputs: Sequence[Sequence[str]]) -> list[int]:
  """Returns the tasks of which a file is not there.

  What a killed process left beside these files, and in the stage, is removed.
  """
  names: dict[str, set[str]] = {stage: set()}
  for path in itertools.chain(*outputs):
    names.setdefault(storage.folder_of(path), set()).add(path)
  there: set[str] = set()
  for folder, wanted in names.items():
    with contextlib.suppress(MissingFileError):
      listed = storage.list_folder(folder)
      there |= wanted.intersection(storage.join(folder, x) for x in listed)
      for name in listed:
        # See `files.replacing`: .NAME.UUID.part
        whole = storage.join(folder, name[1:].rsplit('.', 2)[0])
        if name.endswith('.part') and (whole in wanted or folder == stage):
          storage.remove(storage.join(folder, name))
  return [
    index for index, paths in enumerate(outputs) if not there.issuperset(paths)
  ]


def as_json(value: Any) -> Any:
  """Returns a task or settings as JSON has them, as a marker is read back."""

  def default(item: Any) -> Any:
    if isinstance(item, os.PathLike):
      return os.fspath(item)
    return {x.name: getattr(item, x.name) for x in dataclasses.fields(item)}

  return json.loads(json.dumps(value, default=default))


def _label(task: Any) -> str:
  """Returns a short name of a task: itself, or its first field."""
  if dataclasses.is_dataclass(task) and not isinstance(task, type):
    task = getattr(task, dataclasses.fields(task)[0].name)
  return _short(as_json(task))


def _short(value: Any) -> str:
  """Returns a value of JSON as text, the middle of a long one left out."""
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= 160 else f'{text[:100]} … {text[-50:]}'
