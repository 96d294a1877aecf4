"""`clip-jax eval` as several real processes: one result, from one of them."""

import json

import pytest

from tests.processes import run_together, start_together
from tests.tiny import write_pairs

DEVICES = 4  # of all processes together


@pytest.mark.slow
def test_two_processes_measure_as_one_does_fresh_and_cached(workdir, tmp_path):
  data = write_pairs(tmp_path / 'pictures', 30)
  flags = [f'--model={workdir}', '--task=retrieval', f'--data={data}']

  def kept(count, name, *more):
    out = tmp_path / f'{name}.json'
    words = ['-m', 'clip_jax', 'eval', *flags, f'--out={out}', *more]
    outputs = run_together(count, DEVICES, *words)
    assert 'image_to_text_r1' in outputs[0]
    assert not any('image_to_text_r1' in out for out in outputs[1:])
    return json.loads(out.read_text())

  alone = kept(1, 'alone')
  cache = f'--cache={tmp_path / "features"}'
  assert kept(2, 'fresh', cache) == alone
  entries = {path for path in (tmp_path / 'features').rglob('*.npz')}
  assert len(entries) == 2  # images and texts
  assert kept(2, 'cached', cache) == alone


@pytest.mark.slow
def test_whoever_is_left_names_the_lost_one(workdir, tmp_path):
  data = write_pairs(tmp_path / 'pictures', 30)
  started = start_together(
    2, 2, 'eval', f'--model={workdir}', '--task=retrieval', f'--data={data}',
    f'--cache={tmp_path / "features"}',
    first={
      0: ('-m', 'tests.training.kill_in_phase', 'none', '0', 'worker'),
      1: ('-m', 'tests.training.kill_in_phase', 'features', '0', 'worker'),
    },
  )  # fmt: skip
  ended = [process.communicate(timeout=300) for process in started]
  assert [process.returncode for process in started] == [1, 1]
  (printed, said), _ = ended
  assert said.splitlines()[-1] == (
    'error: process 1 of 2 was lost: it died, or cannot be reached. Run the '
    'same command again in all of them.'
  )
  assert 'Traceback' not in said
  assert not printed  # Gloo's words are no results
