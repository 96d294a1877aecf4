"""A pipeline of two stages that tests run, kill and resume.

    python -m tests.data.prepare.stages FOLDER ENGINE WORKERS

The first stage scatters numbers to files by their last digit; the second joins
the files of a digit.
"""

import dataclasses
import functools
import os
import pathlib
import signal
import sys

from clip_jax.data import storage
from clip_jax.data.decoding import LIMIT_VARIABLE
from clip_jax.data.prepare.engine import Engine, run_stage

NUMBERS = 12
DIGITS = 3
LOCAL = Engine()


@dataclasses.dataclass(frozen=True)
class Number:
  """A task of the first stage."""

  number: int


@dataclasses.dataclass(frozen=True)
class Digit:
  """A task of the second stage."""

  digit: int


def scatter(folder, task):
  """Writes a number's file; stops for ever where the folder says so."""
  if task.number == 13:
    raise ValueError('thirteen')
  stop = pathlib.Path(folder, f'stop-{task.number}')
  if stop.exists():
    (stop.parent / 'stopped').touch()
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(1)  # the system wakes it where its parent has gone
  storage.write_bytes(number_path(folder, task), b'%d\n' % task.number**3)
  return {'numbers': 1}


def number_path(folder, task):
  """The file of a number."""
  digit = task.number % DIGITS
  return storage.join(folder, f'by-digit/{digit}-{task.number:02}.txt')


def limit_of_pixels(task):
  """The limit of an image's pixels where a task runs."""
  return {'limit': os.environ.get(LIMIT_VARIABLE)}


def join(folder, task):
  """Joins the files of a digit."""
  parts = storage.join(folder, 'by-digit')
  names = storage.list_folder(parts)
  names = [x for x in names if x.startswith(f'{task.digit}-')]
  lines = [storage.read_all(storage.join(parts, x), 99) for x in names]
  storage.write_bytes(
    storage.join(folder, f'{task.digit}.txt'), b''.join(lines)
  )
  return {'numbers': len(lines)}


def run(folder, engine=LOCAL, numbers=range(NUMBERS), **settings):
  """Runs both stages, and returns the counts of each."""
  folder = os.fspath(folder)
  first = run_stage(
    'scatter',
    [Number(x) for x in numbers],
    functools.partial(scatter, folder),
    folder,
    engine=engine,
    settings=settings,
    outputs=lambda task: [number_path(folder, task)],
  )
  second = run_stage(
    'join',
    [Digit(x) for x in range(DIGITS)],
    functools.partial(join, folder),
    folder,
    engine=engine,
    settings=settings,
  )
  return first, second


if __name__ == '__main__':
  from tests.data.prepare import stages  # where workers find its functions

  stages.run(sys.argv[1], Engine(sys.argv[2], int(sys.argv[3])))
