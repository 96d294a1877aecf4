"""Progress: quiet for short work, with a rate and the time left for long."""

import io
import json
import os
import sys
import time

import pytest

from clip_jax.commands.printing import (
  metric,
  print_everything,
  print_json,
  watch,
)


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


def printed(encoding, text):
  """What a stream of an encoding gets of a text."""
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding)
  print_everything(stream)
  print(text, file=stream, flush=True)
  return raw.getvalue().rstrip()


@pytest.mark.parametrize(
  'encoding, text, expected',
  [
    ('ascii', '██ a … b → c – d', b'## a ... b -> c - d'),
    ('ascii', 'caf\xe9 \U0001f600', b'caf\\xe9 \\U0001f600'),
    ('latin-1', 'caf\xe9 █', b'caf\xe9 #'),
    ('utf-8', '█ caf\xe9', '█ caf\xe9'.encode()),
    ('utf-8', 'a\udce9.png', b'a\\udce9.png'),
    ('ascii', 'a\udce9.png', b'a\\udce9.png'),
  ],
)
def test_any_text_is_printed_in_any_encoding(encoding, text, expected):
  assert printed(encoding, text) == expected


@pytest.mark.parametrize('encoding', ['utf-8', 'UTF8', 'ascii', 'latin-1'])
def test_json_is_valid_whatever_is_in_it(monkeypatch, encoding):
  raw = io.BytesIO()
  monkeypatch.setattr('sys.stdout', io.TextIOWrapper(raw, encoding))
  value = {
    'image': os.fsdecode(b'caf\xe9 \xff\xfe.png'),
    'label': 'caf\xe9 \U0001f600 …',
    'rates': [1.5, float('nan'), (float('inf'), 'x')],
  }
  print_json(value)
  sys.stdout.flush()
  text = raw.getvalue().decode('utf-8' if 'u' in encoding.lower() else 'ascii')
  found = json.loads(text, parse_constant=pytest.fail)
  assert os.fsencode(found['image']) == b'caf\xe9 \xff\xfe.png'
  assert found['label'] == value['label']
  assert found['rates'] == [1.5, None, [None, 'x']]
