"""The process in which hostile files are read, one case after another.

A line of stdin is `READER SEED`; the answer on stdout is a line of JSON. What
ends this process, or keeps it, is the case's fault that it has not answered.
"""

import dataclasses
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MOST_BYTES = 2 * 2**30  # that a case may take
_SAID_AFTER = 15  # seconds: where a case is that may hang
_MOST_MESSAGE = 700  # characters of an error


@dataclasses.dataclass
class Answer:
  """What became of one case."""

  outcome: str  # 'read', 'refused', or what is wrong
  how: str  # what was done to the files
  error: str = ''
  where: str = ''
  seconds: float = 0.0
  peak: int = 0  # bytes above the start


def main(folder: Path) -> None:
  answers = os.fdopen(os.dup(1), 'w')
  spoken = folder / 'spoken.txt'
  number = os.open(spoken, os.O_RDWR | os.O_CREAT | os.O_APPEND)
  os.dup2(number, 1)
  os.dup2(number, 2)
  from tests.fuzz.readers import READERS

  answers.write('ready\n')
  answers.flush()
  for line in sys.stdin:
    name, seed = line.split()
    home = folder / name
    good = home / 'good'
    if name not in READERS:
      raise SystemExit(f'no reader {name}: {", ".join(READERS)}')
    if not good.exists():
      making = home / 'making'
      shutil.rmtree(home, ignore_errors=True)
      making.mkdir(parents=True)
      READERS[name].make(making)
      _check_good(READERS[name], making)
      making.rename(good)
      _limit()
    os.ftruncate(number, 0)
    answer = run(name, int(seed), home)
    heard = spoken.read_bytes()
    if answer.outcome in ('read', 'refused') and _is_unclean(heard):
      answer.outcome, answer.error = 'prints control characters', repr(heard)
    answers.write(json.dumps(dataclasses.asdict(answer)) + '\n')
    answers.flush()


def _check_good(reader: Any, good: Path) -> None:
  """Reads the good files, which also imports what that takes."""
  from tests.fuzz.readers import OURS

  try:
    reader.read(good, random.Random(0))
  except OURS:
    if not reader.refused:
      raise


def run(name: str, seed: int, home: Path) -> Answer:
  """Damages a copy of the good files and reads it."""
  from tests.fuzz.mutations import damage
  from tests.fuzz.readers import OURS, READERS

  reader = READERS[name]
  case = home / 'case'
  shutil.rmtree(case, ignore_errors=True)
  shutil.copytree(home / 'good', case, symlinks=True)
  draw = random.Random(f'{name} {seed}')
  answer = Answer('read', damage(case, draw))
  reader.mend(case, draw)
  faulthandler.dump_traceback_later(_SAID_AFTER, file=sys.__stderr__)
  before, started = _reset_peak(), time.monotonic()
  try:
    reader.read(case, draw)
  except BaseException as error:  # PanicException is no Exception
    answer.error = f'{type(error).__name__}: {error}'
    answer.where = _where(error)
    answer.outcome = 'refused' if _is_ours(error, OURS) else 'escaped'
    if answer.outcome == 'refused' and _is_unclean(str(error).encode()):
      answer.outcome = 'unclean message'
  faulthandler.cancel_dump_traceback_later()
  answer.seconds = time.monotonic() - started
  answer.peak = _peak() - before
  if answer.peak > MOST_BYTES:
    answer.outcome = 'too much memory'
  shutil.rmtree(case, ignore_errors=True)
  return answer


def _is_ours(error: BaseException, ours: tuple[type, ...]) -> bool:
  if isinstance(error, OSError) and not isinstance(error, ours):
    return error.filename is not None
  return isinstance(error, ours)


def _is_unclean(text: bytes) -> bool:
  lines = text.decode('utf-8', 'replace').splitlines()
  return any(
    len(line) > 4 * _MOST_MESSAGE or not line.replace('\t', '').isprintable()
    for line in lines
  )


def _where(error: BaseException) -> str:
  frames = [
    f'{frame.filename.partition("clip_jax/")[2]}:{frame.lineno}'
    for frame in traceback.extract_tb(error.__traceback__)
    if '/clip_jax/' in frame.filename
  ]
  return frames[-1] if frames else 'outside of clip_jax'


def _reset_peak() -> int:
  """Bytes in memory now, from which the peak is counted anew."""
  Path('/proc/self/clear_refs').write_text('5')
  return _peak()


def _peak() -> int:
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return 1024 * int(line.split()[1])
  return 0


def _limit() -> None:
  """Memory that only a false length would ask for is refused."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmData:'):
      most = 1024 * int(line.split()[1]) + 3 * MOST_BYTES
      _, hard = resource.getrlimit(resource.RLIMIT_DATA)
      resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


if __name__ == '__main__':
  main(Path(sys.argv[1]))
