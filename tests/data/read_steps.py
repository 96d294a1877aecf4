"""A process of a run that reads batches, writes what they hold, and may die.

usage: python -m tests.data.read_steps SPEC FOLDER FIRST INDEX COUNT WORKERS

It writes FOLDER/STEP-INDEX-of-COUNT.npz for each step after FIRST, without end.
"""

import sys
from pathlib import Path

import numpy as np

from clip_jax.data.pipeline import training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source

BATCH = 12


class Characters:
  """A tokenizer whose tokens are the characters of a text."""

  def __call__(self, texts):
    rows = [[ord(x) for x in text[:24].ljust(24)] for text in texts]
    return np.array(rows, np.int32)


def batches(spec, **options):
  """The batches of one process."""
  return training_batches(
    open_source(spec),
    tokenizer=Characters(),
    preprocessing=Preprocessing(image_size=8),
    batch_size=BATCH,
    seed=3,
    **options,
  )


def main(spec, folder, *numbers):
  """Reads until it is killed."""
  first, index, count, workers = map(int, numbers)
  own = batches(
    spec,
    start_step=first,
    process_index=index,
    process_count=count,
    workers=workers,
  )
  for step, batch in enumerate(own, first + 1):
    path = Path(folder) / f'{step}-{index}-of-{count}.npz'
    with open(path.with_suffix('.part'), 'wb') as file:
      np.savez(file, **batch)
    path.with_suffix('.part').rename(path)


if __name__ == '__main__':
  main(*sys.argv[1:])
