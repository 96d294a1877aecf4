"""A run on tars, killed and resumed by another number of processes."""

import os
import random

import numpy as np
import pytest

from clip_jax.checkpoints.reading import load_variables, steps_of
from clip_jax.trees import flat
from tests.data.indexing.archives import write_tars
from tests.processes import run_together, start_together
from tests.training.logged import losses

pytestmark = pytest.mark.slow

STEPS = 12
# What one process of two devices computes, two of one device compute, too.
DEVICES = 2


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """The words of `train` but --workdir: five tars with two broken images."""
  spec = write_tars(tmp_path_factory.mktemp('tars'), 5, {1: 7, 4: 7})
  return [
    'train', '--config=tests/tiny.py', f'--config.data.train={spec}',
    f'--config.total_steps={STEPS}', '--config.log_every_steps=1',
    '--config.checkpoint.every_steps=2', '--config.evaluation.every_steps=0',
  ]  # fmt: skip


@pytest.fixture(scope='module')
def alone(tmp_path_factory, words):
  """The run of one process that nothing interrupts."""
  workdir = tmp_path_factory.mktemp('alone')
  run_together(1, DEVICES, '-m', 'clip_jax', *words, f'--workdir={workdir}')
  return workdir


def kill(workdir, words, count, rng):
  """Starts processes, each of which is killed once it has begun a step."""
  step = rng.randrange(4, STEPS - 2)
  print(f'{count} processes, killed in step {step + 1}')
  kill_in = ('-m', 'tests.training.kill_in_phase', f'step:{step}', '0')
  processes = start_together(
    count, DEVICES, *kill_in, 'worker', *words, f'--workdir={workdir}'
  )
  outputs = [process.communicate(timeout=300) for process in processes]
  assert all(process.returncode for process in processes), outputs
  assert len(losses(workdir)) < STEPS
  assert not steps_of(workdir) or steps_of(workdir)[0] < STEPS


@pytest.mark.parametrize('counts', [(2, 1), (1, 2)])
def test_it_trains_to_the_same_bits(tmp_path, words, alone, counts):
  before, after = counts
  seed = int(os.environ.get('CLIP_JAX_KILL_SEED', '0'))
  kill(tmp_path, words, before, random.Random(seed))
  run_together(after, DEVICES, '-m', 'clip_jax', *words,
               f'--workdir={tmp_path}')  # fmt: skip
  assert losses(tmp_path) == losses(alone)
  own, expected = (flat(load_variables(x)[0]) for x in (tmp_path, alone))
  assert own.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_array_equal(own[name], values, err_msg=name)
