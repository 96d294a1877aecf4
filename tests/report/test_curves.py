"""Curves of numbers that training wrote, as they stand in the page."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from clip_jax.report.curves import (
  Line,
  Plot,
  Reference,
  draw,
  draw_curves,
  plain,
)

PLOT = Plot('Loss', 'nats', {'loss': ''}, plain)


def _markers(svg):
  """The tooltip of each marker that has one."""
  return [title.text for title in ET.fromstring(svg).iter('title')]


def _dots(svg):
  """Markers that can be seen."""
  drawing = ET.fromstring(svg)
  return len(list(drawing.iter('use'))) - len(_markers(svg))


def test_every_value_of_a_short_line_is_marked_and_told_under_the_pointer():
  line = Line('loss', [1, 2, 3, 4], [1.0, math.nan, 3.0, 2.0])
  svg = draw(PLOT, [line], 4)
  assert _markers(svg) == [
    'loss 1 at step 1', 'loss 3 at step 3', 'loss 2 at step 4',
  ]  # fmt: skip
  long = Line('loss', list(range(50)), [1.0] * 50)
  assert _dots(svg) - _dots(draw(PLOT, [long], 50)) == 2
  assert 'nan' not in svg


def test_a_line_is_interrupted_where_it_is_not_finite():
  def path(values):
    steps = list(range(len(values)))
    svg = draw(PLOT, [Line('loss', steps, values)], len(values))
    paths = [p.get('d') for p in ET.fromstring(svg).iter('path')]
    (lines,) = [d for d in paths if d.count('L') == 3]
    return lines

  assert path([1.0, 2.0, 3.0, 1.0]).count('M') == 1
  assert path([1.0, 2.0, math.nan, 1.0, 2.0, 1.0]).count('M') == 2
  assert path([1.0, 2.0, math.inf, 1.0, 2.0, 1.0]).count('M') == 2


def test_ticks_that_lie_close_are_told_apart():
  line = Line('logit scale', [1, 2], [38.4028, 38.3937])
  svg = draw(PLOT, [line], 2)
  ticks = re.findall(r'>(38\.\d+)</text>', svg)
  assert len(ticks) >= 3 and len({*ticks}) == len(ticks)


def test_a_reference_is_drawn_where_it_is_near_the_values():
  line = Line('loss', [1, 2], [1.0, 2.0])
  assert 'a &amp; b' in draw(PLOT, [line], 2, Reference(2.5, 'a & b'))
  assert 'a &amp; b' not in draw(PLOT, [line], 2, Reference(25.0, 'a & b'))


def test_curves_of_long_runs_stay_small():
  steps = list(range(100_000))
  values = [math.sin(i) for i in steps]
  svg = draw(PLOT, [Line('x', steps, values)], 100_000)
  assert len(svg) < 40_000 and '100,000 steps' in svg
  assert len(_markers(svg)) < 100


@pytest.mark.parametrize('value', [0.0, 1e-9, 5.0, -3.0, 1e12])
def test_a_constant_can_be_drawn(value):
  svg = draw(PLOT, [Line('x', [0], [value])], 0)
  assert 'nan' not in svg and 'inf' not in svg


def test_the_label_says_the_last_values():
  rows = [
    {'step': i, 'train/loss': 3.0 - i, 'eval/loss/loss': 4.0 - i}
    for i in (1, 2)
  ]
  config = {'data': {'batch_size': 512}, 'objective': {'name': 'softmax'}}
  (chart,) = draw_curves(rows, config)
  assert chart.last == [('steps', '1'), ('held out', '2')]
  assert 'aria-label="steps: 1 at step 2; held out: 2 at step 2"' in chart.svg
  assert 'ln 512: nothing learned' not in chart.svg  # far above the values
  assert chart == draw_curves(rows, config)[0]  # the same bytes each time


def test_hidden_metrics_are_not_drawn():
  rows = [{'step': 1, 'eval/zero_shot/top1': 0.5, 'eval/zero_shot/top5': 1.0}]
  (chart,) = draw_curves(rows, {}, hidden={'eval/zero_shot/top5'})
  assert chart.last == [('', '50.0 %')]


def test_plain_numbers_have_four_digits():
  assert [plain(x) for x in (3.21549, 5e-4, 12_345.6, 1e-7, 0)] == [
    '3.215',
    '0.0005',
    '12,346',
    '1e-07',
    '0',
  ]


def test_a_loss_of_parts_has_a_chart_for_each():
  """Held-out pairs stand beside the contrastive part, which they have alone."""
  rows = [
    {
      'step': step,
      'train/loss': 9.0 / step,
      'train/loss_contrastive': 3.0 / step,
      'train/loss_captioning': 3.0 / step,
      'eval/loss/loss': 2.0,
    }
    for step in (1, 2)
  ]
  config = {'objective': {'name': 'softmax'}, 'data': {'batch_size': 16}}
  first, second, *rest = draw_curves(rows, config)
  assert first.title == 'Contrastive loss'
  assert first.last == [('steps', '1.5'), ('held out', '2')]
  assert 'nothing learned' in first.svg
  assert (second.title, second.last) == ('Loss of captioning', [('', '1.5')])
  assert not [chart for chart in rest if 'oss' in chart.title]
