"""Kills a job at every one of its operations on files, and finishes it.

A child process embeds and kills itself (SIGKILL) at its n-th audited operation
on a path of the job; another child runs the same job to its end. For each n the
result has to be the bytes of a job that nothing interrupted, and nothing else
may be left. Then all of it again where a file is there that has some of the
records, and is added to. Prints the number of kills.

  python -m tests.inference.kill_everywhere FOLDER SUFFIX
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from clip_jax.data.text_lines import TextLines
from clip_jax.inference.embed import embed
from clip_jax.inference.embed_job import EmbedJob
from clip_jax.progress import no_progress
from tests.inference.fakes import FakeModel, FakeSource


def run_job(out: Path, texts: Path, records: int = 7) -> None:
  job = EmbedJob(
    model=FakeModel(),
    dtype='float32',
    source=FakeSource(records, corrupt=(3,)),
    captions=['caption'],
    texts=TextLines(texts),
    texts_name=texts.name,
    max_corrupt=1,
    part_rows=3,
  )
  summary = embed(job, out, progress=no_progress, say=lambda line: None)
  assert summary.joined
  assert summary.corrupt == {'3.png': 'damaged'}
  assert summary.truncated == 1


def kill_at(operation: int, folder: Path) -> None:
  """Has this process end at an operation on the folder's files."""
  count = 0

  def hook(event: str, arguments: tuple) -> None:
    nonlocal count
    if not event.startswith(('open', 'os.', 'shutil.')):
      return
    if any(str(folder) in str(argument) for argument in arguments):
      if count == operation:
        os.kill(os.getpid(), signal.SIGKILL)
      count += 1

  sys.addaudithook(hook)


def in_a_child(function, *arguments) -> int:
  """How a child process ended: 0, or the signal or code."""
  child = os.fork()
  if child:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  try:
    function(*arguments)
  except BaseException:
    import traceback

    traceback.print_exc()
    os._exit(1)
  os._exit(0)


def main(root: Path, suffix: str) -> None:
  texts = root / 'texts.txt'
  texts.write_text('one\ntwo\n\nthree and four more\nfive\n')
  whole, less = root / f'whole{suffix}', root / f'less{suffix}'
  assert in_a_child(run_job, whole, texts) == 0
  assert in_a_child(run_job, less, texts, 5) == 0
  print(sum(kill_all(root, whole, texts, old) for old in (None, less)))


def kill_all(root: Path, whole: Path, texts: Path, old: Path | None) -> int:
  """How many kills it took; `old` is there at the beginning of each."""
  kills = 0
  while True:
    folder = root / f'{"new" if old is None else "added"}_{kills}'
    folder.mkdir()
    out = folder / f'e{whole.suffix}'
    if old is not None:
      shutil.copy(old, out)

    def killed(n=kills, folder=folder, out=out):
      kill_at(n, folder)
      run_job(out, texts)

    code = in_a_child(killed)
    if code == 0:  # it ended before its n-th operation
      return kills
    assert code == -signal.SIGKILL, code
    assert in_a_child(run_job, out, texts) == 0, kills
    assert out.read_bytes() == whole.read_bytes(), kills
    assert os.listdir(folder) == [out.name], (kills, os.listdir(folder))
    kills += 1


if __name__ == '__main__':
  main(Path(sys.argv[1]), sys.argv[2])
