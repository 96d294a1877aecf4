"""The figures of the suite: rows in, a Matplotlib figure out.

Each takes plain rows, at least one, which `suite_charts.py` makes from
results.json. Rates are fractions, 0 to 1.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_jax.report.charts import (
  ACCENT,
  FONT_SIZE,
  INK,
  RIGHT,
  RULE,
  SECOND,
  SOFT,
  WRONG,
  add_legend,
  new_axes,
  new_bars,
)

Rows = Sequence[dict[str, Any]]
# Colours of the kinds of names, in order; further ones have the last.
_KIND_COLOURS = (ACCENT, SECOND, WRONG, SOFT, INK)
# Ticks of a logit scale, which ends short of 0 and of 1.
_RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95,
          0.98, 0.99)  # fmt: skip
_MIN_RATE = 0.002
_LABEL_HEIGHT = 0.05  # of a small label, as a share of the axis
# Of robustness, by kind of model: marker, its size, colour, name.
_MARKERS = {
  'baseline': ('o', 3.5, SOFT, 'standard models'),
  'probe': ('o', 4.0, SECOND, 'few-shot probes'),
  'full_probe': ('s', 6.0, SECOND, 'probe of all examples'),
  'adapted': ('D', 6.5, RIGHT, "zero-shot, the shift's names"),
  'zero_shot': ('*', 11.0, ACCENT, 'zero-shot'),
}


def draw_differences(rows: Rows, label: str) -> Figure:
  """Draws bars to the left and right of 0, the greatest on top (figures 4, 5).

  Args:
    rows: 'name', 'value', a difference of rates.
    label: of the axis.
  """
  rows = sorted(rows, key=lambda row: -row['value'])
  figure, axes = new_bars([row['name'] for row in rows])
  values = [100 * row['value'] for row in rows]
  colours = [ACCENT if value >= 0 else SECOND for value in values]
  axes.barh(range(len(rows)), values, height=0.62, color=colours)
  axes.axvline(0, color=SOFT, linewidth=0.8)
  reach = max(1.0, *(abs(value) for value in values))
  axes.set_xlim(
    -1.35 * reach if min(values) < 0 else -0.1 * reach,
    1.35 * reach if max(values) > 0 else 0.1 * reach,
  )
  for bar, value in enumerate(values):
    text = f'{value:+.1f}'.replace('-', '\N{MINUS SIGN}')
    _label_bar(axes, value, bar, text, value >= 0)
  axes.set_xlabel(f'{label}, points')
  return figure


def draw_few_shot(rows: Rows) -> Figure:
  """Draws scores over the number of examples a class (figure 6).

  Zero-shot is a star at 0 examples. Of more than one data set, thin lines are
  the data sets and the thick one is their mean.

  Args:
    rows: 'name', 'shots' (0: zero-shot), 'mean', 'low', 'high' (or None).
  """
  curves = _by_name(rows)
  shots = sorted({row['shots'] for row in rows if row['shots'] > 0})
  x_of = {k: i for i, k in enumerate([0, *shots])}
  figure, axes = new_axes(3.1)
  single = len(curves) == 1
  for curve in curves.values():
    if single:
      _draw_interval(axes, curve, x_of)
      _draw_scores(axes, curve, x_of, ACCENT, 1.8)
    else:
      _draw_scores(axes, curve, x_of, SOFT, 0.9)
  if not single:
    _draw_scores(axes, _mean_curve(curves), x_of, ACCENT, 2.2, 'mean')
    _name_ends(axes, curves, x_of)
    add_legend(axes, 'lower right')
  axes.set_xticks(list(x_of.values()), [f'{k:g}' for k in x_of])
  axes.set_xlim(-0.3, len(shots) + (0.3 if single else 1.6))
  axes.set_xlabel('labelled examples a class')
  axes.set_ylabel('score, %')
  return figure


def draw_data_efficiency(rows: Rows) -> Figure:
  """Draws the examples a class that match zero-shot (figure 7).

  Args:
    rows: 'name', 'shots', 'bound': '' or '<' or '>' where only that is known.
  """
  rows = sorted(rows, key=lambda row: -row['shots'])
  figure, axes = new_bars([row['name'] for row in rows])
  values = [row['shots'] for row in rows]
  colours = [SOFT if row['bound'] else ACCENT for row in rows]
  axes.barh(range(len(rows)), values, height=0.62, color=colours)
  axes.set_xlim(0, 1.25 * max(values))
  for bar, row in enumerate(rows):
    text = f'{row["bound"]} {row["shots"]:.3g}'.strip()
    _label_bar(axes, row['shots'], bar, text, True)
  known = [row['shots'] for row in rows if not row['bound']]
  if len(known) > 1:
    axes.axvline(
      float(np.mean(known)), color=SECOND, linewidth=1.2,
      label=f'mean {np.mean(known):.3g}',
    )  # fmt: skip
    axes.axvline(
      float(np.median(known)), color=SECOND, linewidth=1.2, linestyle=':',
      label=f'median {np.median(known):.3g}',
    )  # fmt: skip
    add_legend(axes, 'lower right')
  axes.set_xlabel('labelled examples a class that match zero-shot')
  return figure


def draw_reliability(rows: Rows) -> Figure:
  """Draws the accuracy in each bin of confidence; the diagonal is perfect.

  Args:
    rows: 'low', 'high', 'count' (at least 1), 'confidence', 'accuracy'.
  """
  figure, axes = new_axes(3.1)
  most = max(row['count'] for row in rows)
  for row in rows:
    width = row['high'] - row['low']
    axes.bar(
      row['low'], row['accuracy'], width=0.92 * width, align='edge',
      color=ACCENT, alpha=0.25 + 0.75 * row['count'] / most,
    )  # fmt: skip
  axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle='--')
  axes.plot(
    [row['confidence'] for row in rows],
    [row['accuracy'] for row in rows],
    'o', color=SECOND, markersize=3.5, label='mean confidence of a bin',
  )  # fmt: skip
  axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='confidence', ylabel='accuracy')
  add_legend(axes, 'upper left')
  return figure


def draw_robustness(rows: Rows, line: dict[str, Any] | None) -> Figure:
  """Accuracy under shift over that without, in logits (figures 13 to 15).

  Args:
    rows: 'name', 'reference', 'shift' (rates), 'kind': one of `_MARKERS`.
    line: 'slope', 'intercept' of the logits, and what it is 'through', where
      there is one.
  """
  figure, axes = new_axes(3.6)
  rates = [row[key] for row in rows for key in ('reference', 'shift')]
  low = max(_MIN_RATE, min(rates) / 1.5)
  high = min(1 - _MIN_RATE, 1 - (1 - max(rates)) / 1.5)
  span = np.linspace(_logit(low), _logit(high), 50)
  axes.plot(
    span, span, color=SOFT, linewidth=1, linestyle='--', label='no loss (y = x)'
  )
  if line is not None:
    axes.plot(
      span, line['slope'] * span + line['intercept'], color=SECOND,
      linewidth=1.4, label=f'line through {line["through"]}',
    )  # fmt: skip
  for kind, (marker, size, colour, label) in _MARKERS.items():
    own = [row for row in rows if row['kind'] == kind]
    if own:
      axes.plot(
        [_logit(row['reference']) for row in own],
        [_logit(row['shift']) for row in own],
        marker=marker, markersize=size, color=colour, linestyle='',
        label=label,
      )  # fmt: skip
  ticks = [t for t in _RATES if low <= t <= high]
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks([_logit(t) for t in ticks], [f'{100 * t:g}' for t in ticks])
  axes.set_xlim(_logit(low), _logit(high))
  axes.set_ylim(_logit(low), _logit(high))
  axes.set_xlabel('without the shift, % (logit scale)')
  axes.set_ylabel('under the shift, %')
  add_legend(axes)
  return figure


def draw_overlap(rows: Rows) -> Figure:
  """Draws what overlap is worth over how much there is (figure 17, left).

  Args:
    rows: 'name', 'share', 'difference' (overlap less clean), 'low', 'high' of
      its 99.5 % interval.
  """
  figure, axes = new_axes(3.1)
  reach = min(103.0, max(1.0, *(125 * row['share'] for row in rows)))
  for row in rows:
    x, y = 100 * row['share'], 100 * row['difference']
    clear = row['low'] > 0 or row['high'] < 0
    axes.errorbar(
      x, y, [[y - 100 * row['low']], [100 * row['high'] - y]], fmt='o',
      color=ACCENT if clear else SOFT, markersize=5, capsize=2, linewidth=1.2,
    )  # fmt: skip
    right = x < 0.6 * reach
    axes.annotate(
      row['name'], (x, y), (6 if right else -6, 3),
      textcoords='offset points', ha='left' if right else 'right',
      color=INK, fontsize=FONT_SIZE - 0.5,
    )  # fmt: skip
  axes.axhline(0, color=SOFT, linewidth=0.8)
  axes.set_xlim(0, reach)
  axes.set_xlabel('overlap, % of the test images')
  axes.set_ylabel('overlap less clean, points')
  return figure


def draw_group_rates(rows: Rows) -> Figure:
  """Draws how often each group is given names of each kind (section 7.1).

  Args:
    rows: 'group', 'kind', 'rate', 'low', 'high'.
  """
  groups = list(dict.fromkeys(row['group'] for row in rows))
  kinds = list(dict.fromkeys(row['kind'] for row in rows))
  names = [group for group in groups for _ in kinds]
  figure, axes = new_bars(names)
  ticks = [i * len(kinds) + (len(kinds) - 1) / 2 for i in range(len(groups))]
  axes.set_yticks(ticks, groups)
  for boundary in range(1, len(groups)):
    axes.axhline(boundary * len(kinds) - 0.5, color=RULE, linewidth=0.6)
  for j, kind in enumerate(kinds):
    colour = _KIND_COLOURS[min(j, len(_KIND_COLOURS) - 1)]
    own = {row['group']: row for row in rows if row['kind'] == kind}
    bars = [i * len(kinds) + j for i, g in enumerate(groups) if g in own]
    rates = np.array([100 * own[g]['rate'] for g in groups if g in own])
    ends = [
      [100 * own[g][end] for g in groups if g in own] for end in ('low', 'high')
    ]
    axes.barh(
      bars, rates, height=0.62, label=kind, color=colour,
      xerr=np.abs(np.array(ends) - rates),
      error_kw={'ecolor': SOFT, 'elinewidth': 0.9},
    )  # fmt: skip
  axes.set_xlim(0, 105)
  axes.set_xlabel('rate, %')
  add_legend(
    axes,
    'lower center',
    bbox_to_anchor=(0.4, 1.0),
    ncols=min(3, len(kinds)),
    handlelength=1.0,
  )
  return figure


def _logit(rate: float) -> float:
  """Returns the logit of a rate, which is kept off 0 and 1."""
  inside = min(max(rate, _MIN_RATE), 1 - _MIN_RATE)
  return math.log(inside / (1 - inside))


def _label_bar(
  axes: Axes, value: float, bar: int, text: str, rightwards: bool
) -> None:
  """Writes a number at the end of its bar."""
  axes.annotate(
    text, (value, bar), (3 if rightwards else -3, 0),
    textcoords='offset points', va='center', color=INK,
    ha='left' if rightwards else 'right', fontsize=FONT_SIZE - 0.5,
  )  # fmt: skip


def _by_name(rows: Rows) -> dict[str, list[dict[str, Any]]]:
  """Returns the rows of each name, by shots."""
  ordered = sorted(rows, key=lambda row: (row['name'], row['shots']))
  groups = itertools.groupby(ordered, key=lambda row: row['name'])
  return {name: list(group) for name, group in groups}


def _name_ends(
  axes: Axes,
  curves: Mapping[str, Rows],
  x_of: Mapping[float | int, int],
) -> None:
  """Writes names beside the last points, moved apart where they would meet."""
  ends = sorted(
    (100 * curve[-1]['mean'], name, x_of[curve[-1]['shots']])
    for name, curve in curves.items()
  )
  low, high = axes.get_ylim()
  y = low
  for value, name, x in ends:
    y = max(value, y)
    axes.annotate(
      name, (x, value), (x + 0.15, y), textcoords='data',
      va='center', color=SOFT, fontsize=FONT_SIZE - 1.5,
    )  # fmt: skip
    y += _LABEL_HEIGHT * (high - low)


def _mean_curve(curves: Mapping[str, Rows]) -> Rows:
  """Returns the mean over data sets, at the shots that all of them have."""
  scores = [{row['shots']: row['mean'] for row in c} for c in curves.values()]
  common = set.intersection(*map(set, scores))
  return [
    {'shots': k, 'mean': float(np.mean([curve[k] for curve in scores]))}
    for k in sorted(common)
  ]


def _draw_scores(
  axes: Axes,
  rows: Rows,
  x_of: Mapping[float | int, int],
  colour: str,
  width: float,
  name: str | None = None,
) -> None:
  """Draws a curve over shots, and a star for zero-shot."""
  probes = [row for row in rows if row['shots'] > 0]
  axes.plot(
    [x_of[row['shots']] for row in probes],
    [100 * row['mean'] for row in probes],
    'o-', color=colour, linewidth=width, markersize=2 + width, label=name,
  )  # fmt: skip
  for row in rows:
    if row['shots'] == 0:
      score = 100 * row['mean']
      axes.plot(0, score, '*', color=colour, markersize=6 + 2.5 * width)


def _draw_interval(
  axes: Axes, rows: Rows, x_of: Mapping[float | int, int]
) -> None:
  """Shades the interval of a curve, where it is known."""
  known = [row for row in rows if row['low'] is not None]
  if len(known) > 1:
    axes.fill_between(
      [x_of[row['shots']] for row in known],
      [100 * max(row['low'], 0) for row in known],
      [100 * min(row['high'], 1) for row in known],
      color=ACCENT, alpha=0.15, linewidth=0,
    )  # fmt: skip
