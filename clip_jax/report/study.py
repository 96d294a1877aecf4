"""The figure of a study: accuracy over the images processed (figure 2)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from clip_jax.files import replacing
from clip_jax.report.charts import (
  ACCENT,
  RIGHT,
  SECOND,
  SOFT,
  WRONG,
  add_legend,
  new_axes,
)
from clip_jax.report.page import percent, short_count

# Of the first variants; those after them have the colours again, dashed.
_COLOURS = (ACCENT, SECOND, RIGHT, WRONG, SOFT)
_DOTS_PER_INCH = 200


def draw_curves(
  curves: Sequence[Mapping[str, Any]], measure: str = 'zero-shot accuracy'
) -> Figure:
  """Draws each variant's mean over its seeds, with its interval as a band.

  Args:
    curves: 'variant', and for each measurement 'images', 'mean', 'low',
      'high' (fractions).
    measure: what these are.
  """
  figure, axes = new_axes(3.2)
  for i, curve in enumerate(curves):
    colour = _COLOURS[i % len(_COLOURS)]
    means = [100 * value for value in curve['mean']]
    low, high = (
      [100 * min(max(value, 0.0), 1.0) for value in curve[end]]
      for end in ('low', 'high')
    )
    label = f'{curve["variant"]} ({percent(curve["mean"][-1])})'
    axes.fill_between(
      curve['images'], low, high, color=colour, alpha=0.15, linewidth=0
    )
    axes.plot(
      curve['images'],
      means,
      'o-' if i < len(_COLOURS) else 'o--',
      color=colour,
      markersize=3.5,
      linewidth=1.5,
      label=label,
    )
  axes.set_ylim(bottom=0)
  axes.set_xlim(left=0)
  axes.xaxis.set_major_formatter(lambda x, _: short_count(round(x)))
  axes.set_xlabel('images processed')
  axes.set_ylabel(f'{measure}, %')
  add_legend(axes)
  return figure


def write_figure(
  path: str | os.PathLike,
  curves: Sequence[Mapping[str, Any]],
  measure: str = 'zero-shot accuracy',
) -> None:
  """Writes the figure as a PNG on white, whole or not at all."""
  figure = draw_curves(curves, measure)
  with replacing(path) as temporary, open(temporary, 'wb') as file:
    figure.savefig(
      file, format='png', dpi=_DOTS_PER_INCH, facecolor='white',
      metadata={'Software': None},
    )  # fmt: skip
