"""The figures of the suite: rows in, a Matplotlib figure out.

Each takes plain rows, at least one, which `suite_charts.py` makes from
results.json. Rates are fractions, 0 to 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
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
  label_bar,
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
# Styles in robustness, by kind of model: marker, its size, colour, name.
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
    label_bar(axes, value, bar, text, value >= 0)
  axes.set_xlabel(f'{label}, points')
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
  """Draws accuracy under shift over that without it (figures 13 to 15).

  Both axes are logits.

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
    rows: 'name', 'fraction' (of the test images), 'difference' (overlap less
      clean), 'low', 'high' of its 99.5 % interval.
  """
  figure, axes = new_axes(3.1)
  reach = min(103.0, max(1.0, *(125 * row['fraction'] for row in rows)))
  for row in rows:
    x, y = 100 * row['fraction'], 100 * row['difference']
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
