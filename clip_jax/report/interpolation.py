"""Writes the page of a robustness curve (WiSE-FT, arXiv 2109.01903, figure 1).

It shows models on the way from one to what fine-tuning made of it: their
accuracy on what the second was fine-tuned for, and on other data.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from clip_jax.report import page
from clip_jax.report.charts import (
  ACCENT,
  FONT_SIZE,
  INK,
  RIGHT,
  SECOND,
  SOFT,
  Chart,
  add_legend,
  new_axes,
  to_svg,
)

_COLOURS = (ACCENT, SECOND, RIGHT)  # of the first other sets; more have SOFT


def write_page(path: str | os.PathLike, result: Mapping[str, Any]) -> None:
  """Writes the page of a curve.

  Args:
    path: where the page is written, as a whole.
    result: of `clip-jax interpolate`: 'models', A and B, 'data', 'others', and
      'points': 'alpha', and 'accuracy' of each data set: 'top1', 'low', 'high'.
  Raises:
    FailureError: the page cannot be written.
  """
  page.write(
    path,
    'interpolation.html',
    date=page.long_date(),
    models=result['models'],
    data=result['data'],
    others=result['others'],
    rows=result['points'],
    charts=[
      Chart(
        'Accuracy on the way from A to B',
        'zero-shot',
        to_svg(
          draw_curve(result),
          'curve',
          'accuracy on the other data sets over accuracy on the target',
        ),
        'As figure 1 of WiSE-FT. Bars are intervals of 95 %. Up and to the '
        'right is better: where the curve bends outwards, a point between is '
        'better on one than A or B, and hardly worse on the other.',
      )
    ],
  )


def draw_curve(result: Mapping[str, Any]) -> Figure:
  """Draws accuracy on other data over that on the target, a line each.

  Args:
    result: see `write_page`.
  """
  figure, axes = new_axes(3.4)
  points = result['points']
  x = [point['accuracy'][result['data']] for point in points]
  for i, name in enumerate(result['others']):
    y = [point['accuracy'][name] for point in points]
    colour = _COLOURS[i] if i < len(_COLOURS) else SOFT
    axes.errorbar(
      [100 * a['top1'] for a in x],
      [100 * a['top1'] for a in y],
      _reach(y),
      _reach(x),
      fmt='o-',
      color=colour,
      markersize=4,
      linewidth=1.5,
      elinewidth=0.5,
      label=name,
    )
    for k in {0, len(points) // 2, len(points) - 1}:
      axes.annotate(
        f'α = {points[k]["alpha"]:g}',
        (100 * x[k]['top1'], 100 * y[k]['top1']),
        (5, 5),
        textcoords='offset points',
        color=INK,
        fontsize=FONT_SIZE - 0.5,
      )
  axes.set_xlabel(f'accuracy on {result["data"]}, %')
  axes.set_ylabel('accuracy on the other, %')
  axes.margins(0.12)
  add_legend(axes)
  return figure


def _reach(accuracies: Sequence[Mapping[str, float]]) -> list[list[float]]:
  """Returns how far intervals reach below and above, in points."""
  return [
    [100 * (a['top1'] - a['low']) for a in accuracies],
    [100 * (a['high'] - a['top1']) for a in accuracies],
  ]
