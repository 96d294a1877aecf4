"""Measures `clip-jax data curate` on made-up texts, and on twice as many.

A process of its own does the work, as it is typed, and all of its processes are
watched: their resident memory together, at its peak, and the processor's time.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.benchmarks.timing import Figures
from clip_jax.errors import FailureError

_WORDS = 300_000  # of the vocabulary
_BLOCK = 100_000  # texts made at once
_SYLLABLES = (
  'ka', 'lo', 'mi', 'ter', 'ran', 'sho', 'pe', 'gal', 'ti', 'no', 'bru', 'stan',
  'el', 'vi', 'dor', 'qua', 'fen', 'ly', 'os', 'um', 'gre', 'ja', 'hö', 'cin',
)  # fmt: skip
_PAGE = os.sysconf('SC_PAGE_SIZE')
_TICKS = os.sysconf('SC_CLK_TCK')
_POLL_SECONDS = 0.2


def bench_curate(
  texts: int, queries: int, workers: int, seed: int = 0
) -> list[Figures]:
  """Curates made-up metadata, and then twice as much.

  Args:
    texts, queries: how many there are.
    workers: processes; 0 is one a core.
  Returns:
    For both sizes `texts`, `queries`, `seconds`, `cpu_seconds`, `peak_bytes`
    (the resident memory of all processes together), `rows_out`, and `load`, the
    machine's load average before.
  Raises:
    FailureError: the command failed.
  """
  with tempfile.TemporaryDirectory(prefix='clip_jax.') as folder:
    root = Path(folder)
    figures = []
    for number in (texts, 2 * texts):
      metadata = root / str(number)
      make_corpus(metadata, number, queries, seed)
      figures.append(
        {
          'texts': number,
          'queries': queries,
          **_measure(metadata, root / f'out{number}', workers),
        }
      )
    return figures


def make_corpus(folder: Path, texts: int, queries: int, seed: int) -> None:
  """Writes metadata in Parquet and a list of queries, the same for a seed.

  Words occur as Zipf's law has it. Of the texts 2 % are copies, and some have
  tags, entities or accents. Two of five queries are words, the others pairs of
  words that stand together in the texts, or of any.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  words = _make_words(rng)
  weights = np.cumsum(1 / np.arange(1, len(words) + 1))
  wanted: dict[str, None] = dict.fromkeys(words[: 2 * queries // 5])
  for part, start in enumerate(range(0, texts, _BLOCK)):
    rows = min(_BLOCK, texts - start)
    lengths = rng.integers(4, 21, rows)
    drawn = np.searchsorted(weights, rng.uniform(0, weights[-1], lengths.sum()))
    ends = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    spelled = [words[x] for x in drawn.tolist()]
    captions = [' '.join(spelled[a:b]) for a, b in itertools.pairwise(ends)]
    urls = [f'https://example.org/{start + i:09}.jpg' for i in range(rows)]
    for i in range(0, rows, 50):
      captions[i], urls[i] = captions[i // 2], urls[i // 2]
    for i in range(1, rows, 20):
      captions[i] = f'<b>{captions[i]}</b> &amp; more'
    for i in range(0, len(spelled) - 1, 7):
      if len(wanted) >= queries * 7 // 10:
        break
      wanted[f'{spelled[i]} {spelled[i + 1]}'] = None
    table = pa.table({'url': urls, 'caption': captions})
    pq.write_table(table, folder / f'{part:05}.parquet')
  while len(wanted) < queries:
    one, other = rng.integers(0, len(words), 2).tolist()
    wanted[f'{words[one]} {words[other]}'] = None
  text = '\n'.join(list(wanted)[:queries])
  (folder / 'queries.txt').write_text(text, 'utf-8')


def _make_words(rng: np.random.Generator) -> list[str]:
  words: dict[str, None] = {}
  while len(words) < _WORDS:
    for row in rng.integers(0, len(_SYLLABLES), (_WORDS, 5)).tolist():
      count = 2 + row[4] % 3
      words[''.join(_SYLLABLES[x] for x in row[:count])] = None
  return list(words)[:_WORDS]


def _measure(metadata: Path, out: Path, workers: int) -> dict[str, Any]:
  command = [
    sys.executable, '-m', 'clip_jax', 'data', 'curate', str(metadata),
    f'--out={out}', f'--queries={metadata / "queries.txt"}',
    f'--workers={workers}', f'--languages={",".join(_languages())}', '--json',
  ]  # fmt: skip
  load = os.getloadavg()[0]
  start = time.monotonic()
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  watch = _ProcessMonitor(process.pid)
  watch.start()
  output, errors = process.communicate()
  seconds = time.monotonic() - start
  watch.join()
  if process.returncode:
    raise FailureError(f'data curate failed: {errors[-500:]}')
  return {
    'seconds': seconds,
    'cpu_seconds': watch.cpu_seconds,
    'peak_bytes': watch.peak_bytes,
    'rows_out': json.loads(output)['rows_out'],
    'load': load,
  }


def _languages() -> list[str]:
  """Returns all languages, so that each text's is told and none is dropped."""
  from clip_jax.data.curation.cleaning import known_languages

  return known_languages()


class _ProcessMonitor(threading.Thread):
  """Watches a process and those that it starts, while it runs."""

  def __init__(self, pid: int):
    super().__init__(daemon=True)
    self._pid = pid
    self.peak_bytes = 0
    self._ticks: dict[int, int] = {}

  @property
  def cpu_seconds(self) -> float:
    """Processor time of all processes together, as it was last seen."""
    return sum(self._ticks.values()) / _TICKS

  def run(self) -> None:
    """Looks at /proc until the process has ended."""
    while True:
      total = 0
      alive = False
      for pid, fields in _family(self._pid).items():
        alive = alive or (pid == self._pid and fields[0] != 'Z')
        total += int(fields[21]) * _PAGE
        self._ticks[pid] = sum(map(int, fields[11:13]))
      self.peak_bytes = max(self.peak_bytes, total)
      if not alive:
        return
      time.sleep(_POLL_SECONDS)


def _family(root: int) -> dict[int, list[str]]:
  """Returns the fields of /proc/PID/stat of a process and all that it started.

  The fields are those after the name.
  """
  stats: dict[int, list[str]] = {}
  for name in os.listdir('/proc'):
    if name.isdigit():
      try:
        text = Path(f'/proc/{name}/stat').read_text('utf-8', 'replace')
      except OSError:
        continue
      stats[int(name)] = text.rpartition(')')[2].split()
  family = {root}
  while True:
    more = {x for x, fields in stats.items() if int(fields[1]) in family}
    if more <= family:
      return {x: stats[x] for x in family if x in stats}
    family |= more
