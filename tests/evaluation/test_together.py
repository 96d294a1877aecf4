"""Two real processes evaluate together as one does alone."""

import json
import shutil

import jax
import numpy as np
import pytest

from clip_jax.evaluation.features import extraction
from clip_jax.evaluation.suite import stored
from tests.evaluation import together
from tests.evaluation.suite.fakes import FakeSuite
from tests.processes import run_together
from tests.tiny import write_pairs

pytestmark = pytest.mark.slow

RECORDS, PARTS = 24, 6
LACK = {'shared': [[3, 4, 5]], 'cache': [[4, 5], [0, 1]]}  # a list a folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where one process measured alone, and then two with half of its parts."""
  folder = tmp_path_factory.mktemp('together')
  images = write_pairs(folder / 'pictures', RECORDS)
  (folder / 'pictures' / '002.png').write_text('junk')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(extraction, 'SHARD_ROWS', together.SHARD_ROWS)
    alone = together.measure(images, folder / 'whole')
  (folder / 'alone.json').write_text(json.dumps(alone))
  assert len(parts_of(folder / 'whole')) == 2 * PARTS
  for name, missing in (
    ('shared', LACK['shared'][0]),
    *((f'cache-{i}', LACK['cache'][i]) for i in range(2)),
  ):
    shutil.copytree(folder / 'whole', folder / name)
    for number in missing:
      for part in (folder / name).rglob(f'{number:08}.npz'):
        part.rename(folder / f'{name}.{part.parent.parent.name}.{part.name}')
  write_results(folder)
  before = times(folder)
  run_together(
    2,
    jax.device_count(),
    '-m',
    'tests.evaluation.together',
    images,
    str(folder),
  )
  (folder / 'before.json').write_text(json.dumps(before))
  return folder


def write_results(folder):
  """Of the suite: process 1 lacks what process 0 wrote last."""
  for i, count in ((0, 2), (1, 1)):
    fake = FakeSuite(folder / f'suite-{i}')
    together.run(fake.suite, together.PAIRS[:count], fake.say)


def parts_of(cache):
  return {str(path.relative_to(cache)): path for path in cache.rglob('*.npz')}


def times(folder):
  """When each part of each cache was written."""
  return {
    name: {
      part: path.stat().st_mtime_ns
      for part, path in parts_of(folder / name).items()
    }
    for name in ('shared', 'cache-0', 'cache-1')
  }


def read(folder, name):
  return json.loads((folder / f'{name}.json').read_text())


@pytest.fixture(params=[0, 1])
def answers(request, folder):
  """What each process found."""
  return read(folder, f'answers-{request.param}')


@pytest.mark.parametrize(('cache', 'missing'), [('shared', 3), ('own', 4)])
def test_processes_compute_the_shards_that_one_of_them_lacks(
  folder, answers, cache, missing
):
  alone = read(folder, 'alone')
  result = answers[cache]
  for name in ('metrics', 'records', 'corrupt'):
    assert result[name] == alone[name], name
  assert list(result['corrupt']) == ['002.png']
  rows = missing * together.SHARD_ROWS
  assert result['encoded']['images'] == rows
  assert alone['encoded']['images'] == RECORDS


def test_the_first_process_writes_only_missing_shards(folder):
  before, after = read(folder, 'before'), times(folder)
  assert len(before['shared']) == PARTS
  assert len(after['shared']) == len(after['cache-0']) == 2 * PARTS
  assert before['shared'].items() <= after['shared'].items()
  # Parts that the other one lacked are written again, with the same rows.
  assert after['cache-1'] == before['cache-1']
  whole = parts_of(folder / 'whole')
  for name in ('shared', 'cache-0'):
    for part, path in parts_of(folder / name).items():
      with np.load(path) as ours, np.load(whole[part]) as theirs:
        for array in theirs:
          np.testing.assert_array_equal(ours[array], theirs[array])


def test_a_suite_computes_results_that_one_process_cannot_read(folder, answers):
  assert answers['computed'] == [str(pair) for pair in together.PAIRS[1:]]
  written = [
    [pair for pair in together.PAIRS
     if stored.path_of(folder / f'suite-{i}', pair).exists()]
    for i in range(2)
  ]  # fmt: skip
  assert written == [list(together.PAIRS), list(together.PAIRS[:1])]


def test_a_probe_over_several_processes_equals_that_of_one(folder, answers):
  alone = together.probe()
  result = answers['probe']
  assert len(alone['shards']) == 8
  assert result['shards'] == [[6, 8]] * 4  # 45 rows over 8 devices
  np.testing.assert_allclose(result['weights'], alone['weights'], atol=2e-4)
  assert result['predicted'] == alone['predicted']
  first = read(folder, 'answers-0')['probe']
  assert result['weights'] == first['weights']
  assert result['bias'] == first['bias']
