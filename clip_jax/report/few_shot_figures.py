"""Figures 6 and 7 of the suite: what labelled examples are worth."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_jax.report.charts import (
  ACCENT,
  FONT_SIZE,
  SECOND,
  SOFT,
  add_legend,
  label_bar,
  new_axes,
  new_bars,
)
from clip_jax.report.suite_figures import Rows

# Height of a data set's name, as a fraction of the axis.
_NAME_HEIGHT = 0.05


def draw_few_shot(rows: Rows) -> Figure:
  """Draws scores over the number of examples a class (figure 6).

  Zero-shot is a star at 0 examples. Of more than one data set, thin lines are
  the data sets and the thick one is their mean.

  Args:
    rows: 'name', 'shots' (examples a class; 0 is zero-shot), 'mean', 'low' and
      'high' (or None).
  """
  curves = _by_name(rows)
  examples_per_class = sorted({row['shots'] for row in rows} - {0})
  x_of = {k: i for i, k in enumerate([0, *examples_per_class])}
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
  axes.set_xlim(-0.3, len(examples_per_class) + (0.3 if single else 1.6))
  axes.set_xlabel('labelled examples a class')
  axes.set_ylabel('score, %')
  return figure


def draw_data_efficiency(rows: Rows) -> Figure:
  """Draws the examples a class that match zero-shot (figure 7).

  Args:
    rows: 'name', 'shots' (examples a class), and 'bound': '<' or '>' where only
      a bound is known, else ''.
  """
  rows = sorted(rows, key=lambda row: -row['shots'])
  figure, axes = new_bars([row['name'] for row in rows])
  values = [row['shots'] for row in rows]
  colours = [SOFT if row['bound'] else ACCENT for row in rows]
  axes.barh(range(len(rows)), values, height=0.62, color=colours)
  axes.set_xlim(0, 1.25 * max(values))
  for bar, row in enumerate(rows):
    text = f'{row["bound"]} {row["shots"]:.3g}'.strip()
    label_bar(axes, row['shots'], bar, text, True)
  exact = [row['shots'] for row in rows if not row['bound']]
  if len(exact) > 1:
    axes.axvline(
      float(np.mean(exact)), color=SECOND, linewidth=1.2,
      label=f'mean {np.mean(exact):.3g}',
    )  # fmt: skip
    axes.axvline(
      float(np.median(exact)), color=SECOND, linewidth=1.2, linestyle=':',
      label=f'median {np.median(exact):.3g}',
    )  # fmt: skip
    add_legend(axes, 'lower right')
  axes.set_xlabel('labelled examples a class that match zero-shot')
  return figure


def _by_name(rows: Rows) -> dict[str, list[dict[str, Any]]]:
  """Returns the rows of each name, by rising examples a class."""
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
    y += _NAME_HEIGHT * (high - low)


def _mean_curve(curves: Mapping[str, Rows]) -> Rows:
  """Returns the mean over data sets, where all of them have a point."""
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
  """Draws a curve over the examples a class, and a star for zero-shot."""
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
  """Shades the interval of a curve where it has one."""
  rows = [row for row in rows if row['low'] is not None]
  if len(rows) > 1:
    axes.fill_between(
      [x_of[row['shots']] for row in rows],
      [100 * max(row['low'], 0) for row in rows],
      [100 * min(row['high'], 1) for row in rows],
      color=ACCENT, alpha=0.15, linewidth=0,
    )  # fmt: skip
