"""Measures a data set of made-up size: opening, batches, memory.

One shard of small images is made, and stands for all others by symbolic links,
so that a data set of 10^9 records takes no more room than its index. What is
opened, shuffled, read and decoded is what a run would open, shuffle, read and
decode, in a process that begins with nothing in memory.
"""

import dataclasses
import io
import json
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax import tokenizers
from clip_jax.benchmarks.timing import Figures
from clip_jax.data.indexing.manifest import MANIFEST, to_manifest
from clip_jax.data.indexing.tar_index import (
  EntryArray,
  TarIndex,
  index_in_memory,
)
from clip_jax.data.pipeline import step_records, training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.data.sources.wds import WdsSource

_SHARD_RECORDS = 10_000  # as img2dataset writes them
_ENTRIES = 'entries-made-up.bin'


def bench_index(records: int, batch: int, steps: int) -> Figures:
  """Measures a data set of so many records, made up in a temporary folder.

  Args:
    batch: the records of a batch.
    steps: the number of batches that are measured, from all over an epoch.
  Returns:
    Seconds of opening; medians of finding the records of a batch in the index,
    of naming them, and of making the batch that trains; and the most bytes of
    the process that were resident, in all and before the data were opened.
  """
  with tempfile.TemporaryDirectory(prefix='clip_jax.') as folder:
    make_data(Path(folder), records)
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context) as pool:
      return pool.submit(_measure, folder, batch, steps).result()


def make_data(folder: Path, records: int) -> None:
  """Writes a data set of so many records: an index, and one shard with links.

  wds:FOLDER names it.
  """
  rng = np.random.default_rng(0)
  first = folder / f'{0:08}.tar'
  with tarfile.open(first, 'w', format=tarfile.USTAR_FORMAT) as tar:
    for number in range(min(records, _SHARD_RECORDS)):
      image = io.BytesIO()
      pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(image, 'PNG', compress_level=1)
      caption = f'made-up caption {number}'.encode()
      for suffix, content in (('png', image.getvalue()), ('txt', caption)):
        member = tarfile.TarInfo(f'{number:08}.{suffix}')
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
  one = index_in_memory(str(folder), [first.name])
  rows = one.shard_entries(0)
  shards = []
  with open(folder / _ENTRIES, 'wb') as file:
    for start in range(0, records, _SHARD_RECORDS):
      name = f'{len(shards):08}.tar'
      if shards:
        (folder / name).symlink_to(first.name)
      count = min(_SHARD_RECORDS, records - start)
      counts = dict.fromkeys(one.totals(), count)
      shards.append(
        dataclasses.replace(one.shards[0], name=name, counts=counts)
      )
      file.write(rows[:count].tobytes())
  index = TarIndex('.', shards, one.kinds, EntryArray(rows[:0]))
  manifest = to_manifest(index, '', _ENTRIES)
  (folder / MANIFEST).write_text(json.dumps(manifest))


def _measure(folder: str, batch: int, steps: int) -> Figures:
  """Measures in this process, which has done nothing else."""
  tokenizer = tokenizers.load('clip')
  tokenizer('')
  before = _peak_bytes()
  started = time.perf_counter()
  source = open_source(f'wds:{folder}')
  assert isinstance(source, WdsSource)
  opening = time.perf_counter() - started
  batches_an_epoch = max(1, len(source) // batch)
  numbers = np.random.default_rng(0).integers(0, batches_an_epoch, steps)
  looking, naming, making = [], [], []
  for number in numbers.tolist():
    positions = np.random.default_rng(number).integers(0, len(source), batch)
    started = time.perf_counter()
    for position in positions.tolist():
      source.index.entry(position)
    looking.append(time.perf_counter() - started)
    started = time.perf_counter()
    step_records([source], batch_size=batch, seed=0, step=number + 1)
    naming.append(time.perf_counter() - started)
    started = time.perf_counter()
    batches = training_batches(
      source,
      tokenizer=tokenizer,
      preprocessing=Preprocessing(image_size=32),
      batch_size=batch,
      seed=0,
      start_step=number,
      threads=0,
    )
    next(batches)
    making.append(time.perf_counter() - started)
    batches.close()
  return {
    'records': len(source),
    'shards': len(source.index.names),
    'batch': batch,
    'opening_seconds': opening,
    'lookup_seconds_per_batch': float(np.median(looking)),
    'naming_seconds_per_batch': float(np.median(naming)),
    'first_batch_seconds': float(np.median(making)),
    'resident_bytes': _peak_bytes(),
    'resident_bytes_before_opening': before,
  }


def _peak_bytes() -> int:
  """Returns the most memory of this process that was resident so far."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
