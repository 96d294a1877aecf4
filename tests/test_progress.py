"""Progress: a bar on a terminal, plain lines elsewhere, none of short work."""

import io
import time

import pytest

from clip_jax.progress import (
  TrainingProgress,
  byte_count,
  duration,
  show_progress,
  speed,
)


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when told to."""
  now = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


def test_short_work_says_nothing(capsys):
  assert list(show_progress('abc', 3, 'images')) == ['a', 'b', 'c']
  assert capsys.readouterr().err == ''


def test_long_work_says_how_long(capsys, clock):
  for _ in show_progress(range(40), 1040, 'images', done=1000):
    clock[0] += 0.5
  lines = capsys.readouterr().err.splitlines()
  assert lines == ['1,021 of 1,040 images, 2.0 a second, 0:00:10 left']


def test_nothing_is_estimated_before_the_first_item(capsys, clock):
  def items():
    yield 'no size'
    clock[0] += 11
    yield 'sized'

  list(show_progress(items(), 9, 'shards', size=lambda x: x == 'sized'))
  assert capsys.readouterr().err == '0 of 9 shards\n'


def test_items_may_count_for_several(capsys, clock):
  chunks = [range(500)] * 4
  for _ in show_progress(chunks, 2000, 'rows', size=len):
    clock[0] += 10.5
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == '500 of 2,000 rows, 47.6 a second, 0:00:32 left'


def test_a_terminal_has_a_bar_that_goes_on(monkeypatch):
  terminal = _Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  assert len(list(show_progress(range(5), 15, 'images', done=10))) == 5
  assert '10/15' in terminal.getvalue()


NUMBERS = {'train/loss': 3.2149, 'train/examples_per_second': 820.4}


def test_piped_progress_is_plain_lines():
  stream = io.StringIO()
  with TrainingProgress(1500, 64, stream=stream) as progress:
    for step in range(1, 201):
      progress.update(step)
    progress.report(200, NUMBERS)
    progress.log('saved step 200')
    progress.report(1500, NUMBERS)
  assert stream.getvalue().splitlines() == [
    'step 200/1,500  loss 3.215  820 images/s  1 min 41 s left',
    'saved step 200',
    'step 1,500/1,500  loss 3.215  820 images/s',
  ]


def test_piped_progress_says_where_it_resumes():
  stream = io.StringIO()
  with TrainingProgress(1500, 64, start_step=1000, stream=stream):
    pass
  assert stream.getvalue() == 'resumes after step 1,000 of 1,500\n'


def test_progress_on_a_terminal_is_a_bar():
  stream = _Terminal()
  with TrainingProgress(100, 64, start_step=40, stream=stream) as progress:
    assert '40/100' in stream.getvalue()
    progress.report(50, NUMBERS)
    progress.log('saved step 50')
    progress.update(100)
  shown = stream.getvalue()
  assert '50/100' in shown and 'loss 3.215  820 images/s  4 s left' in shown
  assert 'saved step 50\n' in shown
  assert '100/100' in shown and shown.endswith('\n')


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0, '0 s'),
    (59.6, '1 min'),
    (100, '1 min 40 s'),
    (3600, '1 h'),
    (7_500, '2 h 5 min'),
    (90_000, '1 d 1 h'),
  ],
)
def test_duration(seconds, text):
  assert duration(seconds) == text


def test_speed():
  assert [speed(9.412), speed(82.44), speed(12_345.6)] == [
    '9.41',
    '82.4',
    '12,346',
  ]


def test_byte_count():
  counts = [0, 999, 7_440, 20_800_000, 1_203_000_000_000]
  assert [byte_count(x) for x in counts] == [
    '0 bytes', '999 bytes', '7.4 kB', '20.8 MB', '1,203.0 GB',
  ]  # fmt: skip
