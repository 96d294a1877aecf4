"""Figures of small tables."""

import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clip_jax.report import few_shot_figures as few_shot
from clip_jax.report import suite_figures as draw
from clip_jax.report.charts import to_svg

CURVE = [
  {'name': name, 'shots': k, 'mean': 0.1 * (i + 1), 'low': low, 'high': 0.9}
  for name, low in (('a', 0.0), ('b', None))
  for i, k in enumerate((0, 1, 4))
]
BINS = [
  {'low': 0.0, 'high': 0.5, 'count': 1, 'confidence': 0.2, 'accuracy': 0.0},
  {'low': 0.5, 'high': 1.0, 'count': 3, 'confidence': 0.8, 'accuracy': 0.5},
]
MODELS = [
  {'name': 'ours', 'reference': 0.7, 'shift': 0.6, 'kind': 'zero_shot'},
  {'name': '1 shot', 'reference': 0.3, 'shift': 0.2, 'kind': 'probe'},
  {'name': 'none right', 'reference': 0.0, 'shift': 1.0, 'kind': 'full_probe'},
]
LINE = {'slope': 1.0, 'intercept': -0.5, 'through': 'probes'}
OVERLAP = [
  {'name': 'a', 'fraction': 0.2, 'difference': 0.1, 'low': 0.01, 'high': 0.2},
  {'name': 'b', 'fraction': 0.97, 'difference': -0.1, 'low': -0.2, 'high': 0.1},
]
RATES = [
  {'group': group, 'kind': kind, 'rate': 0.5, 'low': 0.4, 'high': 0.6}
  for group in ('young', 'old')
  for kind in ('group', 'crime-related')
]
DIFFERENCES = [{'name': 'a', 'value': 0.02}, {'name': 'b', 'value': -0.3}]
NEEDED = [
  {'name': 'a', 'shots': 3.0, 'bound': ''},
  {'name': 'b', 'shots': 5.0, 'bound': ''},
  {'name': 'c', 'shots': 16.0, 'bound': '>'},
]


def _differences(rows):
  return draw.draw_differences(rows, 'gain')


def _robustness(rows):
  return draw.draw_robustness(rows, LINE)


def _no_line(rows):
  return draw.draw_robustness(rows, None)


FIGURES = [
  (_differences, DIFFERENCES),
  (few_shot.draw_few_shot, CURVE),
  (few_shot.draw_data_efficiency, NEEDED),
  (draw.draw_reliability, BINS),
  (_robustness, MODELS),
  (_no_line, MODELS),
  (draw.draw_overlap, OVERLAP),
  (draw.draw_group_rates, RATES),
]


def _svg(figure: Figure) -> str:
  return str(to_svg(figure, 'figure', 'what it shows'))


def _points(line: Line2D) -> np.ndarray:
  return np.stack([line.get_xdata(), line.get_ydata()], axis=1)


@pytest.mark.parametrize(('function', 'rows'), FIGURES)
def test_all_rows_and_one_can_be_drawn(function, rows):
  whole, one = _svg(function(rows)), _svg(function(rows[-1:]))
  assert whole.startswith('<svg viewBox=') and '</text>' in whole
  assert len(one) <= len(whole)


def test_bars_are_ordered_and_say_their_values():
  texts = re.findall(r'>([^<>]+)</text>', _svg(_differences(DIFFERENCES[::-1])))
  assert texts.index('a') < texts.index('b')
  assert '+2.0' in texts and '\N{MINUS SIGN}30.0' in texts


def test_the_mean_curve_is_over_the_shots_that_all_have():
  rows = [row for row in CURVE if (row['name'], row['shots']) != ('b', 4)]
  (axes,) = few_shot.draw_few_shot(rows).axes
  (mean,) = [line for line in axes.lines if line.get_label() == 'mean']
  assert _points(mean)[:, 1] == pytest.approx([20.0])


def test_zero_shot_is_a_star_at_no_examples():
  (axes,) = few_shot.draw_few_shot(CURVE[:3]).axes
  stars = [line for line in axes.lines if line.get_marker() == '*']
  assert [_points(x).tolist() for x in stars] == [[[0.0, 10.0]]]
  assert [tick.get_text() for tick in axes.get_xticklabels()] == ['0', '1', '4']


def test_bounds_are_no_part_of_the_mean():
  (axes,) = few_shot.draw_data_efficiency(NEEDED).axes
  labels = [line.get_label() for line in axes.lines]
  assert labels[:2] == ['mean 4', 'median 4']
  assert '> 16' in [text.get_text() for text in axes.texts]


def test_robustness_is_drawn_in_logits():
  (axes,) = draw.draw_robustness(MODELS[:1], LINE).axes
  (star,) = [line for line in axes.lines if line.get_marker() == '*']
  place = [math.log(0.7 / 0.3), math.log(0.6 / 0.4)]
  assert _points(star) == pytest.approx(np.array([place]))
  legend = axes.get_legend()
  assert legend
  names = [text.get_text() for text in legend.get_texts()]
  assert names == ['no loss (y = x)', 'line through probes', 'zero-shot']
