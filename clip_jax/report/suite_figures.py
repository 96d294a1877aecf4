"""The figures of the suite: rows in, a Matplotlib figure out.

Each takes plain rows (see `figures.py`, which makes them from results.json)
and knows of no model. Rates are fractions, 0 to 1.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_jax.report.axes import (
  LETTERS,
  legend,
  new_axes,
  new_bars,
  no_data,
)
from clip_jax.report.charts import (
  ACCENT,
  INK,
  RIGHT,
  RULE,
  SECOND,
  SOFT,
  WRONG,
)

Rows = Sequence[dict[str, Any]]
# Kinds of names in a bar, in order; more are drawn in the last.
_SERIES = (ACCENT, SECOND, WRONG, SOFT, INK)
# Ticks of the scale of logits, which ends short of 0 and of 1.
_RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95,
          0.98, 0.99)  # fmt: skip
_LEAST = 0.002
_LABEL_HEIGHT = 0.05  # of a small label, as a share of the axis
# Of robustness: marker, its size, colour, what it is.
_MARKERS = {
  'baseline': ('o', 3.5, SOFT, 'standard models'),
  'probe': ('o', 4.0, SECOND, 'few-shot probes'),
  'full_probe': ('s', 6.0, SECOND, 'probe of all examples'),
  'adapted': ('D', 6.5, RIGHT, "zero-shot, the shift's names"),
  'zero_shot': ('*', 11.0, ACCENT, 'zero-shot'),
}


def draw_differences(rows: Rows, label: str) -> Figure:
  """Bars to the left and right of 0, the greatest on top (figures 4, 5).

  Args:
    rows: 'name', 'value', a difference of rates.
    label: of the axis.
  """
  if not rows:
    return no_data()
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
  for place, value in enumerate(values):
    text = f'{value:+.1f}'.replace('-', '\N{MINUS SIGN}')
    _write(axes, value, place, text, value >= 0)
  axes.set_xlabel(f'{label}, points')
  return figure


def draw_few_shot(rows: Rows) -> Figure:
  """Curves over examples a class (figure 6).

  Zero-shot is a star at 0 examples; thin lines are data sets, the thick one
  their mean, where there are several that have the same shots.

  Args:
    rows: 'name', 'shots' (0: zero-shot), 'mean', 'low', 'high' (or None).
  """
  if not rows:
    return no_data()
  curves = _by_name(rows)
  shots = sorted({row['shots'] for row in rows if row['shots'] > 0})
  places = {0: 0, **{k: i + 1 for i, k in enumerate(shots)}}
  figure, axes = new_axes(3.1)
  several = len(curves) > 1
  for curve in curves.values():
    colour = SOFT if several else ACCENT
    _curve(axes, curve, places, colour, 0.9 if several else 1.8, not several)
  if several:
    _curve(axes, _mean_curve(curves), places, ACCENT, 2.2, False, 'mean')
    _name_ends(axes, curves, places)
    legend(axes, 'lower right')
  axes.set_xticks(
    list(places.values()),
    ['0', *(f'{k:g}' for k in shots)],
  )
  axes.set_xlim(-0.3, len(shots) + (1.6 if several else 0.3))
  axes.set_xlabel('labelled examples a class')
  axes.set_ylabel('score, %')
  return figure


def draw_data_efficiency(rows: Rows) -> Figure:
  """How many examples a class a probe needs to match zero-shot (figure 7).

  Args:
    rows: 'name', 'shots', 'bound': '' or '<' or '>' where only that is known.
  """
  if not rows:
    return no_data()
  rows = sorted(rows, key=lambda row: -row['shots'])
  figure, axes = new_bars([row['name'] for row in rows])
  values = [row['shots'] for row in rows]
  colours = [SOFT if row['bound'] else ACCENT for row in rows]
  axes.barh(range(len(rows)), values, height=0.62, color=colours)
  axes.set_xlim(0, 1.25 * max(values))
  for place, row in enumerate(rows):
    text = f'{row["bound"]} {row["shots"]:.3g}'.strip()
    _write(axes, row['shots'], place, text, True)
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
    legend(axes, 'lower right')
  axes.set_xlabel('labelled examples a class that match zero-shot')
  return figure


def draw_reliability(rows: Rows) -> Figure:
  """Accuracy in each bin of confidence; the diagonal is perfect.

  Args:
    rows: 'low', 'high', 'count', 'confidence', 'accuracy' (None if empty).
  """
  filled = [row for row in rows if row['count']]
  if not filled:
    return no_data()
  figure, axes = new_axes(3.1)
  most = max(row['count'] for row in filled)
  for row in filled:
    width = row['high'] - row['low']
    axes.bar(
      row['low'], row['accuracy'], width=0.92 * width, align='edge',
      color=ACCENT, alpha=0.25 + 0.75 * row['count'] / most,
    )  # fmt: skip
  axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle='--')
  axes.plot(
    [row['confidence'] for row in filled],
    [row['accuracy'] for row in filled],
    'o', color=SECOND, markersize=3.5, label='mean confidence of a bin',
  )  # fmt: skip
  axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='confidence', ylabel='accuracy')
  legend(axes, 'upper left')
  return figure


def draw_robustness(rows: Rows, line: dict[str, Any] | None) -> Figure:
  """Accuracy under shift over that without, in logits (figures 13 to 15).

  Args:
    rows: 'name', 'reference', 'shift' (rates), 'kind': one of `_MARKERS`.
    line: 'slope', 'intercept' of the logits, and what it is 'through', where
      there is one.
  """
  if not rows:
    return no_data()
  figure, axes = new_axes(3.6)
  rates = [row[key] for row in rows for key in ('reference', 'shift')]
  low = max(_LEAST, min(rates) / 1.5)
  high = min(1 - _LEAST, 1 - (1 - max(rates)) / 1.5)
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
  axes.set_xlabel('without the shift, % (scale of logits)')
  axes.set_ylabel('under the shift, %')
  legend(axes)
  return figure


def draw_overlap(rows: Rows) -> Figure:
  """What overlap is worth, over how much there is (figure 17, left).

  Args:
    rows: 'name', 'share', 'difference' (overlap less clean), 'low', 'high' of
      its 99.5 % interval.
  """
  if not rows:
    return no_data()
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
      color=INK, fontsize=LETTERS - 0.5,
    )  # fmt: skip
  axes.axhline(0, color=SOFT, linewidth=0.8)
  axes.set_xlim(0, reach)
  axes.set_xlabel('overlap, % of the test pictures')
  axes.set_ylabel('overlap less clean, points')
  return figure


def draw_group_rates(rows: Rows) -> Figure:
  """How often each group is given names of each kind (section 7.1).

  Args:
    rows: 'group', 'kind', 'rate', 'low', 'high'.
  """
  if not rows:
    return no_data()
  groups = list(dict.fromkeys(row['group'] for row in rows))
  kinds = list(dict.fromkeys(row['kind'] for row in rows))
  names = [group for group in groups for _ in kinds]
  figure, axes = new_bars(names)
  ticks = [i * len(kinds) + (len(kinds) - 1) / 2 for i in range(len(groups))]
  axes.set_yticks(ticks, groups)
  for boundary in range(1, len(groups)):
    axes.axhline(boundary * len(kinds) - 0.5, color=RULE, linewidth=0.6)
  for j, kind in enumerate(kinds):
    own = {row['group']: row for row in rows if row['kind'] == kind}
    places = [i * len(kinds) + j for i, g in enumerate(groups) if g in own]
    rates = np.array([100 * own[g]['rate'] for g in groups if g in own])
    ends = [
      [100 * own[g][end] for g in groups if g in own] for end in ('low', 'high')
    ]
    axes.barh(
      places, rates, height=0.62, label=kind, color=_colour(j),
      xerr=np.abs(np.array(ends) - rates),
      error_kw={'ecolor': SOFT, 'elinewidth': 0.9},
    )  # fmt: skip
  axes.set_xlim(0, 105)
  axes.set_xlabel('rate, %')
  axes.legend(
    frameon=False, fontsize=LETTERS, labelcolor=INK, loc='lower center',
    bbox_to_anchor=(0.4, 1.0), ncols=min(3, len(kinds)), handlelength=1.0,
  )  # fmt: skip
  return figure


def _logit(rate: float) -> float:
  inside = min(max(rate, _LEAST), 1 - _LEAST)
  return math.log(inside / (1 - inside))


def _colour(index: int) -> str:
  return _SERIES[min(index, len(_SERIES) - 1)]


def _write(
  axes: Axes, value: float, place: int, text: str, rightwards: bool
) -> None:
  """A number at the end of its bar."""
  axes.annotate(
    text, (value, place), (3 if rightwards else -3, 0),
    textcoords='offset points', va='center', color=INK,
    ha='left' if rightwards else 'right', fontsize=LETTERS - 0.5,
  )  # fmt: skip


def _by_name(rows: Rows) -> dict[str, list[dict[str, Any]]]:
  ordered = sorted(rows, key=lambda row: (row['name'], row['shots']))
  groups = itertools.groupby(ordered, key=lambda row: row['name'])
  return {name: list(group) for name, group in groups}


def _name_ends(
  axes: Axes,
  curves: Mapping[str, Rows],
  places: Mapping[float | int, int],
) -> None:
  """Names beside the last points, moved apart where they would meet."""
  ends = sorted(
    (100 * curve[-1]['mean'], name, places[curve[-1]['shots']])
    for name, curve in curves.items()
  )
  low, high = axes.get_ylim()
  at = low
  for value, name, place in ends:
    at = max(value, at)
    axes.annotate(
      name, (place, value), (place + 0.15, at), textcoords='data',
      va='center', color=SOFT, fontsize=LETTERS - 1.5,
    )  # fmt: skip
    at += _LABEL_HEIGHT * (high - low)


def _mean_curve(curves: dict[str, list[dict[str, Any]]]) -> Rows:
  """Over the data sets, at the shots that all of them have."""
  found = [{row['shots']: row['mean'] for row in c} for c in curves.values()]
  common = set.intersection(*(set(curve) for curve in found))
  return [
    {
      'shots': k,
      'mean': float(np.mean([curve[k] for curve in found])),
      'low': None,
      'high': None,
    }
    for k in sorted(common)
  ]


def _curve(
  axes: Axes,
  rows: Rows,
  places: Mapping[float | int, int],
  colour: str,
  width: float,
  banded: bool,
  name: str | None = None,
) -> None:
  shot = [row for row in rows if row['shots'] > 0]
  xs = [places[row['shots']] for row in shot]
  axes.plot(
    xs, [100 * row['mean'] for row in shot], 'o-', color=colour,
    linewidth=width, markersize=2 + width, label=name,
  )  # fmt: skip
  sure = [row for row in shot if row['low'] is not None]
  if banded and len(sure) > 1:
    axes.fill_between(
      [places[row['shots']] for row in sure],
      [100 * max(row['low'], 0) for row in sure],
      [100 * min(row['high'], 1) for row in sure],
      color=colour, alpha=0.15, linewidth=0,
    )  # fmt: skip
  for row in rows:
    if row['shots'] == 0:
      axes.plot(
        0, 100 * row['mean'], '*', color=colour, markersize=6 + 2.5 * width
      )
