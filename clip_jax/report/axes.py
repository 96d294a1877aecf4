"""What all figures of the suite look like: size, letters, lines."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_jax.report.charts import INK, RULE, SOFT

# Inches. A figure is shown about as wide as it is drawn, so that its letters
# stay legible on a phone.
WIDTH = 4.6
LETTERS = 9.0  # points
Place = Literal['best', 'upper left', 'lower right']
_BAR = 0.2  # inches a bar


def new_axes(height: float = 2.9) -> tuple[Figure, Axes]:
  """A figure with one pair of axes."""
  figure = Figure(figsize=(WIDTH, height), layout='constrained')
  figure.patch.set_alpha(0)
  axes = figure.add_subplot()
  axes.patch.set_alpha(0)
  for side in ('top', 'right'):
    axes.spines[side].set_visible(False)
  for side in ('left', 'bottom'):
    axes.spines[side].set_color(RULE)
  axes.tick_params(colors=SOFT, labelsize=LETTERS, length=0)
  axes.grid(color=RULE, linewidth=0.6)
  axes.set_axisbelow(True)
  axes.xaxis.label.set(color=SOFT, fontsize=LETTERS)
  axes.yaxis.label.set(color=SOFT, fontsize=LETTERS)
  return figure, axes


def new_bars(names: Sequence[str]) -> tuple[Figure, Axes]:
  """Axes with a line a name, the first on top."""
  figure, axes = new_axes(0.7 + _BAR * len(names))
  axes.grid(axis='y', visible=False)
  axes.set_yticks(range(len(names)), names, color=INK)
  axes.set_ylim(len(names) - 0.4, -0.6)
  return figure, axes


def no_data() -> Figure:
  """What is drawn where there is nothing to draw."""
  figure, axes = new_axes(1.0)
  axes.set_axis_off()
  axes.text(
    0.5, 0.5, 'no data', ha='center', color=SOFT, fontsize=LETTERS,
    transform=axes.transAxes,
  )  # fmt: skip
  return figure


def legend(axes: Axes, where: Place = 'best') -> None:
  """Names of the lines, without a box."""
  axes.legend(
    frameon=False, fontsize=LETTERS, labelcolor=INK, loc=where,
    handlelength=1.4,
  )  # fmt: skip
