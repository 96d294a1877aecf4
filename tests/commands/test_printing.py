"""Progress: quiet for short work, with a rate and the time left for long."""

import io
import time

import pytest

from clip_jax.commands.printing import metric, watch


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when told to."""
  now = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


def test_short_work_says_nothing(capsys):
  assert list(watch('abc', 3, 'images')) == ['a', 'b', 'c']
  assert capsys.readouterr().err == ''


def test_long_work_says_how_long(capsys, clock):
  for _ in watch(range(40), 1040, 'images', done=1000):
    clock[0] += 0.5
  lines = capsys.readouterr().err.splitlines()
  assert lines == ['1,021 of 1,040 images, 2.0 a second, 0:00:10 left']


def test_items_may_count_for_several(capsys, clock):
  chunks = [range(500)] * 4
  for _ in watch(chunks, 2000, 'rows', size=len):
    clock[0] += 10.5
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == '500 of 2,000 rows, 47.6 a second, 0:00:32 left'


def test_a_terminal_has_a_bar_that_goes_on(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  assert len(list(watch(range(5), 15, 'images', done=10))) == 5
  assert '10/15' in terminal.getvalue()


@pytest.mark.parametrize(
  'name, value, shown',
  [
    ('top1', 0.5, '50.00 %'),
    ('photo_gain', 0.0279, '+2.79 points'),
    ('all_minus_clean', -0.0338, '-3.38 points'),
    ('effective_robustness', 0.05618, '+5.62 points'),
    ('own names/child/largest_difference', 0.1, '+10.00 points'),
    ('overlap_examples', 1234.0, '1,234'),
    ('p_value', 1.0, '1'),
  ],
)
def test_rates_are_percentages_and_differences_points(name, value, shown):
  assert metric(name, value).strip() == shown
