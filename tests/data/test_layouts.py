"""The same emoji train the same, whatever the files that they lie in."""

import numpy as np
import pytest

from clip_jax.data.pipeline import training_batches
from clip_jax.data.prepare.build import BuildJob, build
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from tests.data.layouts import write_layouts
from tests.data.test_captions import lengths
from tests.processes import run_together
from tests.training.logged import losses

COUNT = 48
TFDS = f'tfds:emoji#train[:{COUNT}]'
# Files of others' making, and those that `data build` writes.
NAMES = (
  'arrayrecord', 'csv', 'folder', 'hf', 'parquet', 'tfds', 'wds',
  'built_arrayrecord', 'built_wds',
)  # fmt: skip
TOGETHER = ('arrayrecord', 'parquet', 'tfds', 'built_wds')
STEPS = 3


@pytest.fixture(scope='module')
def specs(emoji_folder, tmp_path_factory):
  """SPECs of the same records by name."""
  source = open_source(TFDS)
  records = [source[i] for i in range(COUNT)]
  folder = tmp_path_factory.mktemp('layouts')
  made = write_layouts(folder, records)
  described = f'arrayrecord:{emoji_folder}#train[:{COUNT}]'
  for layout in ('arrayrecord', 'wds'):
    out = f'{folder}/built_{layout}'
    build(BuildJob(TFDS, ('caption',), out, layout, shard_records=20))
    made[f'built_{layout}'] = f'{layout}:{folder}/built_{layout}'
  return made | {'tfds': TFDS, 'described': described}


def batches(spec, processes, process=0, start=0):
  return training_batches(
    open_source(spec), tokenizer=lengths, preprocessing=Preprocessing(16),
    batch_size=8, seed=5, process_index=process, process_count=processes,
    start_step=start, threads=0,
  )  # fmt: skip


@pytest.mark.parametrize('name', [*NAMES, 'described'])
def test_batches_are_those_of_tfds(specs, name):
  whole = batches(specs['tfds'], 1)
  alone = batches(specs[name], 1)
  parts = [batches(specs[name], 2, process) for process in range(2)]
  resumed = batches(specs[name], 1, start=6)
  for step in range(8):
    expected = next(whole)
    rows = [next(part) for part in parts]
    for key in ('image', 'tokens'):
      together = np.concatenate([part[key] for part in rows])
      np.testing.assert_array_equal(together, expected[key])
    np.testing.assert_array_equal(next(alone)['image'], expected['image'])
    if step >= 6:
      np.testing.assert_array_equal(next(resumed)['image'], expected['image'])


@pytest.mark.slow
def test_losses_are_the_same_to_the_bit(specs, tmp_path):
  made = {}
  # Steps of two processes take long where others use the machine.
  for processes, names in ((1, NAMES), (2, TOGETHER)):
    folder = tmp_path / str(processes)
    run_together(
      processes, 2, '-m', 'tests.training.train_each', str(folder), str(STEPS),
      *(f'{name}={specs[name]}' for name in names), seconds=900,
    )  # fmt: skip
    made |= {(name, processes): losses(folder / name) for name in names}
  expected = made['tfds', 1]
  assert [step for step, _ in expected] == [*range(1, STEPS + 1)]
  assert made == dict.fromkeys(made, expected)
