"""What the verbs print: metrics, JSON, text of any encoding."""

import io
import json
import os
import sys

import pytest

from clip_jax.commands.printing import (
  metric,
  print_everything,
  print_json,
)


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
  parsed = json.loads(text, parse_constant=pytest.fail)
  assert os.fsencode(parsed['image']) == b'caf\xe9 \xff\xfe.png'
  assert parsed['label'] == value['label']
  assert parsed['rates'] == [1.5, None, [None, 'x']]
