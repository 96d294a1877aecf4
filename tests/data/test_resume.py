"""Runs on tars, killed at random: the records of each step stay the same."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from clip_jax.data.pipeline import step_records
from clip_jax.data.sources import open_source
from tests.data.indexing.archives import write_tars
from tests.data.read_steps import BATCH, batches
from tests.waiting import until

STEPS = 40
RECORDS = 100


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  """The SPEC of shards of 100 records, two of them damaged, with an index."""
  return write_tars(tmp_path_factory.mktemp('shards'), 10, {3: 4, 7: 4})


@pytest.fixture(scope='module')
def expected(spec):
  """The batches of a run of one process that nothing interrupts."""
  own = batches(spec)
  return [next(own) for _ in range(STEPS)]


def rows_of(parts):
  """The batch that several processes have together."""
  return {
    name: np.concatenate([part[name] for part in parts])
    for name in ('image', 'tokens')
  }


def assert_equal(batch, other):
  for name in ('image', 'tokens'):
    np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize('count', [2, 3])
def test_several_processes_have_the_batches_of_one(spec, expected, count):
  parts = [
    batches(spec, process_index=i, process_count=count) for i in range(count)
  ]
  for batch in expected[:20]:
    assert_equal(rows_of([next(part) for part in parts]), batch)


def test_steps_have_the_records_that_step_records_names(spec, expected):
  source = open_source(spec)
  for step in (1, 7, STEPS):
    ids = step_records([source], batch_size=BATCH, seed=3, step=step)
    texts = [
      ''.join(map(chr, row)).strip() for row in expected[step - 1]['tokens']
    ]
    for name, text in zip(ids, texts, strict=True):
      number = int(name.rpartition(':')[2])
      is_damaged = number in (34, 74)  # the next one takes its place
      assert text == f'caption {number + is_damaged}'


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_a_run_killed_at_random_goes_on_with_other_processes(
  spec, expected, tmp_path, seed
):
  rng = random.Random(seed)
  counts, done = [1, 2, 3], 0
  rng.shuffle(counts)
  while done < STEPS:
    count = counts.pop() if counts else 1
    stop = min(STEPS, done + rng.randrange(8, 25)) if counts else STEPS
    last = read_until(spec, tmp_path, done, stop, count, rng.randrange(2))
    saved = rng.randrange(done, last + 1) if last < STEPS else STEPS
    for step in range(done + 1, last + 1):
      assert_equal(read_step(tmp_path, step, count), expected[step - 1])
    done = saved  # the newest checkpoint may be steps ago


def read_until(spec, folder, first, stop, count, workers):
  """Starts processes, and kills them all once one has read a step.

  Returns:
    The last step that all of them have read.
  """
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, '-m', 'tests.data.read_steps', spec, str(folder)),
        *map(str, (first, index, count, workers)),
      ],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    for index in range(count)
  ]
  try:
    until(lambda: last_step(folder, first, count) >= stop)
  finally:
    for process in processes:
      process.kill()
      process.wait()
  return min(last_step(folder, first, count), STEPS)


def last_step(folder, first, count):
  """The last step after `first` that each of the processes has read."""
  step = first
  while all(
    (folder / f'{step + 1}-{index}-of-{count}.npz').exists()
    for index in range(count)
  ):
    step += 1
  return step


def read_step(folder, step, count):
  """What the processes read in a step."""
  parts = []
  for index in range(count):
    with np.load(folder / f'{step}-{index}-of-{count}.npz') as part:
      parts.append(dict(part))
  return rows_of(parts)
