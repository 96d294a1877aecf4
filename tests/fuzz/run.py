"""Runs cases of hostile files through a worker, and says which fall short.

python -m tests.fuzz.run --cases 20000
python -m tests.fuzz.run --reader hf_tokenizer --seed 17    one case again
"""

import argparse
import collections
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.fuzz.worker import Answer

SECONDS = 20  # of a processor, that a case may take
_WALL = 10  # times as long it may last, where others use the machine, too
MOST_SHOWN = 1500
_FINE = ('read', 'refused')


@dataclasses.dataclass(frozen=True)
class Case:
  reader: str
  seed: int
  answer: Answer

  @property
  def is_fine(self) -> bool:
    return self.answer.outcome in _FINE

  def __str__(self) -> str:
    a = self.answer
    return (
      f'--reader {self.reader} --seed {self.seed}: {a.outcome} ({a.how}) '
      f'{a.error[-MOST_SHOWN:]} at {a.where}, {a.seconds:.1f} s, '
      f'{a.peak / 2**20:,.0f} MiB'
    )


def _cpu_seconds(pid: int) -> float:
  """Returns the processor time that a process has used, in seconds."""
  fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  user, system = fields[11:13]
  return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


class Worker:
  """A worker process, started anew after a case that ended it."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._process: subprocess.Popen | None = None

  def run(self, reader: str, seed: int) -> Answer:
    """One case; a worker that died or hangs is its outcome."""
    if self._process is None:
      self._start()
    process = self._process
    assert process and process.stdin
    process.stdin.write(f'{reader} {seed}\n'.encode())
    process.stdin.flush()
    line = self._line(SECONDS if self._made(reader) else 10 * SECONDS)
    if line:
      return Answer(**json.loads(line))
    if not self._made(reader):
      self.close()
      spoken = (self._folder / 'spoken.txt').read_text(errors='replace')
      raise RuntimeError(f'no good files of {reader}: {spoken[-2000:]}')
    hangs = process.poll() is None
    self.close()
    how = f'hangs over {SECONDS} s' if hangs else f'ended: {process.returncode}'
    spoken = self._folder / 'spoken.txt'
    said = spoken.read_bytes()[-3000:].decode('utf-8', 'replace')
    return Answer(how, '?', said)

  def close(self) -> None:
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      self._process = None

  def _made(self, reader: str) -> bool:
    return (self._folder / reader / 'good').exists()

  def _start(self) -> None:
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'tests.fuzz.worker', str(self._folder)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      bufsize=0,
      cwd=Path(__file__).parents[2],
      env=os.environ | {'HOME': str(self._folder), 'JAX_PLATFORMS': 'cpu'},
    )
    assert self._line(10 * SECONDS) == 'ready', 'the worker does not start'

  def _line(self, seconds: float) -> str:
    """The next line, or '' where none came in time."""
    process = self._process
    assert process and process.stdout
    end, data = time.monotonic() + _WALL * seconds, b''
    used = _cpu_seconds(process.pid) + seconds
    while not data.endswith(b'\n'):
      if not select.select([process.stdout], [], [], 1)[0]:
        if time.monotonic() > end or _cpu_seconds(process.pid) > used:
          return ''
        continue
      piece = os.read(process.stdout.fileno(), 65_536)
      if not piece:
        process.wait()
        return ''
      data += piece
    return data.decode().strip()


def cases(count: int, first: int = 0) -> Iterator[tuple[str, int]]:
  """Readers in turn by their shares, each with seeds of its own."""
  from tests.fuzz.readers import READERS

  credit = dict.fromkeys(READERS, 0.0)
  total = sum(reader.share for reader in READERS.values())
  seeds: collections.Counter[str] = collections.Counter()
  for _ in range(count):
    for name, reader in READERS.items():
      credit[name] += reader.share / total
    name = max(credit, key=lambda name: credit[name])
    credit[name] -= 1
    yield name, first + seeds[name]
    seeds[name] += 1


def run(wanted: Iterable[tuple[str, int]], folder: Path) -> Iterator[Case]:
  worker = Worker(folder)
  try:
    for reader, seed in wanted:
      yield Case(reader, seed, worker.run(reader, seed))
  finally:
    worker.close()


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', type=int, default=2000)
  parser.add_argument('--first', type=int, default=0, help='the first seed')
  parser.add_argument('--reader', default='')
  parser.add_argument('--seed', type=int)
  options = parser.parse_args(argv)
  wanted = cases(options.cases, options.first)
  if options.reader:
    first = options.first if options.seed is None else options.seed
    last = first + (options.cases if options.seed is None else 1)
    wanted = ((options.reader, seed) for seed in range(first, last))
  counts: dict[str, collections.Counter[str]] = {}
  spent: collections.Counter[str] = collections.Counter()
  bad = 0
  with tempfile.TemporaryDirectory(prefix='clip_jax_fuzz_') as folder:
    for case in run(wanted, Path(folder)):
      outcome = case.answer.outcome if case.is_fine else 'FELL SHORT'
      counts.setdefault(case.reader, collections.Counter())[outcome] += 1
      spent[case.reader] += case.answer.seconds
      if not case.is_fine or options.seed is not None:
        print(case, flush=True)
      bad += not case.is_fine
  for name, result in counts.items():
    print(f'{name:24} {spent[name]:6.1f} s  {dict(result)}')
  print(f'{sum(sum(x.values()) for x in counts.values()):,} cases, {bad} bad')
  return bad > 0


if __name__ == '__main__':
  sys.exit(main())
