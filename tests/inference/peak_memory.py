"""Embeds so many records and prints the most memory that it took, in bytes.

python -m tests.inference.peak_memory RECORDS OUT
"""

import resource
import sys
from pathlib import Path

from clip_jax.inference.embed import embed
from clip_jax.inference.embed_job import EmbedJob
from clip_jax.progress import no_progress
from tests.inference.fakes import FakeModel, FakeSource


class Forgetful(FakeSource):
  """Keeps no list of what it was asked for."""

  def __init__(self, count):
    super().__init__(count)
    self.asked = _Nothing()


class _Nothing(list):
  def append(self, item):
    pass


def main(records: int, out: Path) -> None:
  job = EmbedJob(
    model=FakeModel(dims=1024),
    dtype='float32',
    source=Forgetful(records),
    captions=['caption'],
    texts=None,
    texts_name='',
    max_corrupt=0,
    part_rows=256,
  )
  summary = embed(job, out, progress=no_progress, say=lambda line: None)
  assert (summary.images, summary.joined) == (records, True)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == '__main__':
  main(int(sys.argv[1]), Path(sys.argv[2]))
