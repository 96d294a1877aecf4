"""What a run writes, also when it is killed, and what its watcher sees."""

import json
import math
import os
import subprocess
import sys

import pytest

from clip_jax.errors import FailureError
from clip_jax.training.metrics import (
  MetricsFile,
  is_evaluated,
  read_metrics,
  series,
)


def test_lines_are_json_objects_with_step_time_and_numbers(tmp_path):
  with MetricsFile(tmp_path / 'run') as writer:
    writer.write(10, {'train/loss': 2.5, 'train/learning_rate': 1e-3})
    writer.write(10, {'eval/zero_shot/top1': 0.25})
  lines = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  first, second = map(json.loads, lines)
  assert first['step'] == 10 and first['train/loss'] == 2.5
  assert 1.7e9 < first['time'] <= second['time']
  assert set(second) == {'step', 'time', 'eval/zero_shot/top1'}
  assert read_metrics(tmp_path / 'run') == [first, second]


def test_the_evaluation_of_a_step_is_found(tmp_path):
  assert not is_evaluated(tmp_path, 4)
  with MetricsFile(tmp_path) as writer:
    writer.write(4, {'train/loss': 2.5})
    writer.write(8, {'eval/loss/loss': 2.5})
  assert not is_evaluated(tmp_path, 4)
  assert is_evaluated(tmp_path, 8)


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  writer = MetricsFile(tmp_path)
  writer.write(1, {'train/loss': 1.0})
  assert read_metrics(tmp_path)[0]['train/loss'] == 1.0
  writer.close()
  writer.close()


def test_numbers_that_are_not_finite_stay_legal_json(tmp_path):
  with MetricsFile(tmp_path) as writer:
    writer.write(1, {'a': math.nan, 'b': math.inf, 'c': -math.inf})

  def refuse(constant):
    raise AssertionError(constant)

  text = (tmp_path / 'metrics.jsonl').read_text()
  row = json.loads(text, parse_constant=refuse)
  assert (row['a'], row['b'], row['c']) == ('NaN', 'Infinity', '-Infinity')
  (row,) = read_metrics(tmp_path)
  assert math.isnan(row['a']) and row['b'] == math.inf and row['c'] < 0


def test_numbers_may_be_arrays_of_one_element(tmp_path):
  numpy = pytest.importorskip('numpy')
  with MetricsFile(tmp_path) as writer:
    writer.write(numpy.int64(3), {'a': numpy.float32(0.5)})
  (row,) = read_metrics(tmp_path)
  assert row['step'] == 3 and row['a'] == 0.5


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
  with MetricsFile(tmp_path) as writer:
    writer.write(1, {'a': 1.0})
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"step": 2, "ti')
  assert [row['step'] for row in read_metrics(tmp_path)] == [1]
  with MetricsFile(tmp_path) as writer:
    assert path.read_bytes() == whole
    writer.write(2, {'a': 2.0})
  assert [row['step'] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_file_that_holds_half_a_line_and_no_more(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(b'{"ste')
  assert read_metrics(tmp_path) == []
  with MetricsFile(tmp_path) as writer:
    writer.write(1, {'a': 1.0})
  assert len(read_metrics(tmp_path)) == 1


def test_lines_that_are_no_rows_are_left_out(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(
    b'[1]\n{"a": 1}\n\xff\xfe\n{"step": 4, "time": 1.0}\n\n'
  )
  assert read_metrics(tmp_path) == [{'step': 4, 'time': 1.0}]


def test_no_file_no_rows(tmp_path):
  assert read_metrics(tmp_path / 'nothing') == []


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
  with MetricsFile(tmp_path) as writer:
    for step in (10, 20, 30, 40):
      writer.write(step, {'a': float(step)})
  with MetricsFile(tmp_path) as writer:
    writer.truncate_after(20)
    assert [row['step'] for row in read_metrics(tmp_path)] == [10, 20]
    writer.write(30, {'a': -30.0})
  assert series(read_metrics(tmp_path), 'a') == ([10, 20, 30], [10, 20, -30])
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_truncation_in_an_empty_workdir_writes_nothing(tmp_path):
  with MetricsFile(tmp_path) as writer:
    writer.truncate_after(0)
  assert read_metrics(tmp_path) == []


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux only')
def test_a_full_disk_is_an_error_of_the_call(tmp_path):
  writer = MetricsFile(tmp_path)
  (tmp_path / 'metrics.jsonl').unlink()
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  with pytest.raises(FailureError, match=r'metrics\.jsonl: no space left'):
    writer.write(1, {'a': 1.0})


def test_series_keeps_the_last_value_of_a_step():
  rows = [
    {'step': 2, 'a': 1.0},
    {'step': 1, 'a': 3.0, 'b': 0.0},
    {'step': 2, 'a': 2.0},
  ]
  assert series(rows, 'a') == ([1, 2], [3.0, 2.0])
  assert series(rows, 'c') == ([], [])


def test_writing_pulls_in_neither_tensorflow_nor_torch():
  code = (
    'import sys, clip_jax.training.tensorboard, clip_jax.progress;'
    'print([m for m in ("tensorflow", "torch", "matplotlib")'
    ' if m in sys.modules])'
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


@pytest.mark.parametrize(
  'line',
  [
    '[' * 100_000,
    '{"step": 3}',
    '{"step": true, "time": 1}',
    '{"step": -1, "time": 1}',
    '{"step": 3, "time": "now"}',
    '{"step": 3, "time": 1, "train/loss": "much"}',
    '{"step": 3, "time": 1, "train/loss": [1]}',
    '{"step": 3, "time": 1, "train/loss": null}',
    '{"step": 1' + '0' * 5000 + ', "time": 1}',
    '{"step": 3, "time": 1, "x": 1' + '0' * 400 + '}',
  ],
)
def test_lines_of_another_form_are_left_out(tmp_path, line):
  good = '{"step": 1, "time": 1.5, "train/loss": "NaN"}'
  (tmp_path / 'metrics.jsonl').write_text(f'{good}\n{line}\n')
  assert [row['step'] for row in read_metrics(tmp_path)] == [1]
  with MetricsFile(tmp_path) as writer:
    writer.truncate_after(9)


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'metrics.jsonl')
  for read in (read_metrics, MetricsFile):
    with pytest.raises(FailureError, match='a pipe or a device'):
      read(tmp_path)
