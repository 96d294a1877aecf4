"""The curves of a training run: which ones a report shows, drawn over steps."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from clip_jax.progress import speed
from clip_jax.report.charts import (
  ACCENT,
  FONT_SIZE,
  SECOND,
  SOFT,
  Chart,
  new_axes,
  to_svg,
)
from clip_jax.report.facts import setting
from clip_jax.report.page import percent
from clip_jax.training.metrics import Row, series

MAX_POINTS = 400  # of a line; longer ones become means of neighbours
MAX_TOOLTIPS = 60
# Few points are measurements, each worth a dot; of many only the last has one.
MAX_DOTS = 12
_STYLES = (  # of the first line of a chart, and of the others
  {'color': ACCENT, 'linewidth': 1.5},
  {'color': SECOND, 'linewidth': 1.5, 'dashes': (3, 2)},
  {'color': SOFT, 'linewidth': 1.8, 'dashes': (0.1, 2)},
)


@dataclasses.dataclass(frozen=True)
class Plot:
  """A row of `PLOTS`: the metrics that share a vertical axis.

  Attributes:
    title, unit: of the chart.
    names: metric to the name of its line; '' where it is alone.
    write: writes a value.
    from_zero: whether the axis begins at 0.
    at_least: the axis reaches this far.
  """

  title: str
  unit: str
  names: Mapping[str, str]
  write: Callable[[float], str]
  from_zero: bool = False
  at_least: float = -math.inf


@dataclasses.dataclass(frozen=True)
class Line:
  """Values, of which some may not be finite, at steps."""

  name: str
  steps: Sequence[int]
  values: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Reference:
  """A value to compare the lines with, and its name."""

  value: float
  name: str


def plain(value: float | int) -> str:
  """Returns four significant digits: '3.215', '0.0005', '12,300'."""
  if value and not 1e-4 <= abs(value) < 1e9:
    return f'{value:.3g}'
  if abs(value) >= 1000:
    return f'{value:,.0f}'
  return f'{value:.4g}'


PLOTS = (
  Plot(
    'Loss',
    'nats a pair',
    {
      'train/loss': 'steps',
      'eval/loss/loss': 'held out',
      'eval/train_loss/loss': 'training pairs',
    },
    plain,
  ),
  Plot(
    'Zero-shot accuracy',
    'held out',
    {'eval/zero_shot/top1': 'top-1', 'eval/zero_shot/top5': 'top-5'},
    percent,
    from_zero=True,
    at_least=1.0,
  ),
  Plot(
    'Captions written word for word',
    'held out',
    {'eval/captioning/exact_match': ''},
    percent,
    from_zero=True,
    at_least=1.0,
  ),
  *(
    Plot(
      f'Retrieval R@1, {query} to {match}',
      '',
      {
        f'eval/retrieval/{query}_to_{match}_r1': 'held out',
        f'eval/train_retrieval/{query}_to_{match}_r1': 'training pairs',
      },
      percent,
      from_zero=True,
      at_least=1.0,
    )
    for query, match in (('image', 'text'), ('text', 'image'))
  ),
  Plot('Learning rate', '', {'train/learning_rate': ''}, plain, from_zero=True),
  Plot('Logit scale', '1 / temperature', {'train/logit_scale': ''}, plain),
  Plot(
    'Gradient',
    'global norm',
    {'train/grad_norm': ''},
    plain,
    from_zero=True,
  ),
  Plot(
    'Speed',
    'images/s',
    {'train/examples_per_second': ''},
    speed,
    from_zero=True,
  ),
  Plot(
    'Waiting for input',
    'share of the time',
    {'train/input_wait_fraction': ''},
    percent,
    from_zero=True,
    at_least=0.2,
  ),
  Plot(
    'Model FLOPs utilisation',
    "share of the chip's peak",
    {'train/mfu': ''},
    percent,
    from_zero=True,
    at_least=1.0,
  ),
)


def draw_curves(
  rows: Sequence[Row], config: Mapping[str, Any], hidden: Collection[str] = ()
) -> list[Chart]:
  """Draws those of `PLOTS` that the run has numbers for.

  Args:
    rows: of metrics.jsonl.
    config: of the run; names the levels to compare with.
    hidden: metrics that are not drawn.
  """
  last_step = max((row['step'] for row in rows), default=0)
  charts = []
  for plot in _plots(rows):
    lines = [
      Line(name, *series(rows, metric))
      for metric, name in plot.names.items()
      if metric not in hidden
    ]
    lines = [line for line in lines if any(map(math.isfinite, line.values))]
    if not lines:
      continue
    last = [(line.name, plot.write(line.values[-1])) for line in lines]
    if len(lines) == 1:
      last = [('', value) for _, value in last]
    svg = draw(plot, lines, last_step, _reference(plot, rows, config))
    charts.append(Chart(plot.title, plot.unit, svg, last=last))
  return charts


def _plots(rows: Sequence[Row]) -> Sequence[Plot]:
  """Returns `PLOTS`; of a loss of several parts, each part has its own.

  Held-out pairs have the contrastive part alone.
  """
  prefix = 'train/loss_'
  parts = {name for row in rows for name in row if name.startswith(prefix)}
  own = f'{prefix}contrastive'
  if own not in parts:
    return PLOTS
  loss, *rest = PLOTS
  names = {own: 'steps', **loss.names}
  del names['train/loss']
  others = [
    Plot(f'Loss of {name.removeprefix(prefix)}', 'nats', {name: ''}, plain)
    for name in sorted(parts - {own})
  ]
  contrastive = dataclasses.replace(loss, title='Contrastive loss', names=names)
  return [contrastive, *others, *rest]


def draw(
  plot: Plot,
  lines: Sequence[Line],
  last_step: int,
  reference: Reference | None = None,
) -> Markup:
  """Draws lines over steps, each with a dot at its last value.

  Args:
    plot: the axis.
    lines: at most three, with at least one finite value.
    last_step: the right end of the axis.
    reference: drawn where it lies not too far from the values.
  """
  figure, axes = new_axes(2.4)
  finite = [v for line in lines for v in line.values if math.isfinite(v)]
  low, high = min(finite), max(finite)
  if reference and reference.value <= high + 0.5 * (high - low):
    low, high = min(low, reference.value), max(high, reference.value)
  else:
    reference = None
  _set_axes(plot, axes, last_step, low, high)
  if reference:
    _draw_reference(axes, reference, last_step)
  tooltips, labels = {}, []
  for i, line in enumerate(lines):
    name = line.name or plot.title
    tooltips[f'values-{i}'] = _draw_line(axes, line, i, name, plot.write)
    value = plot.write(line.values[-1])
    labels.append(f'{name}: {value} at step {line.steps[-1]:,}')
  name = plot.title.replace(' ', '-')
  return to_svg(figure, name, '; '.join(labels), tooltips)


def _set_axes(
  plot: Plot, axes: Axes, last_step: int, low: float, high: float
) -> None:
  """Sets the limits, and round numbers as ticks that enclose the values."""
  low = 0.0 if plot.from_zero else low
  high = max(high, plot.at_least)
  if high <= low:
    high = low + (abs(low) or 1.0)
  ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
  write = _whole_percent if plot.write is percent else plot.write
  labels = [write(tick) for tick in ticks]
  if len({*labels}) < len(labels):  # they lie closer than `write` tells apart
    labels = [f'{tick:.6g}' for tick in ticks]
  axes.set_yticks(ticks, labels)
  axes.set_ylim(ticks[0], ticks[-1])
  right = max(last_step, 1)
  axes.set_xlim(0, right)
  middle = round(last_step / 2)
  axes.set_xticks(
    [0, middle, right], ['0', f'{middle:,}', f'{last_step:,} steps']
  )
  # The outer labels end where the lines do.
  first, _, last = axes.get_xticklabels()
  first.set_horizontalalignment('left')
  last.set_horizontalalignment('right')
  axes.spines[['left', 'bottom']].set_visible(False)
  axes.grid(axis='x', visible=False)


def _draw_reference(axes: Axes, reference: Reference, last_step: int) -> None:
  axes.axhline(
    reference.value, color=SOFT, linewidth=0.9, linestyle=':', clip_on=False
  )
  bottom, top = axes.get_ylim()
  below = reference.value - bottom > 0.15 * (top - bottom)
  axes.annotate(
    reference.name,
    (1, reference.value),
    (0, -3 if below else 3),
    xycoords=axes.get_yaxis_transform(),
    textcoords='offset points',
    ha='right',
    va='top' if below else 'bottom',
    color=SOFT,
    fontsize=FONT_SIZE,
  )


def _draw_line(
  axes: Axes,
  line: Line,
  index: int,
  name: str,
  write: Callable[[float], str],
) -> list[str]:
  """Draws a line, interrupted where it is not finite.

  Returns:
    The texts of the invisible markers `values-INDEX`, which show the values
    under the pointer.
  """
  style = _STYLES[index]
  steps, values = _thin(np.asarray(line.steps), np.asarray(line.values, float))
  axes.plot(steps, values, clip_on=False, dash_capstyle='round', **style)
  finite = np.flatnonzero(np.isfinite(values))
  dots = finite if len(finite) <= MAX_DOTS else finite[-1:]
  marker = {'color': style['color'], 'linestyle': '', 'clip_on': False}
  axes.plot(steps[dots], values[dots], 'o', markersize=4, **marker)
  shown = finite[:: max(1, len(finite) // MAX_TOOLTIPS)]
  axes.plot(
    steps[shown], values[shown], 'o', markersize=11, alpha=0,
    gid=f'values-{index}', **marker,
  )  # fmt: skip
  return [
    f'{name} {write(float(values[i]))} at step {steps[i]:,}' for i in shown
  ]


def _thin(
  steps: Int[np.ndarray, ' N'], values: Float[np.ndarray, ' N']
) -> tuple[Int[np.ndarray, ' M'], Float[np.ndarray, ' M']]:
  """Returns at most MAX_POINTS means of neighbours, and the last value.

  What is not finite becomes NaN, and is in no mean.
  """
  values = np.where(np.isfinite(values), values, np.nan)
  size = -(-len(values) // MAX_POINTS)
  if size <= 1:
    return steps, values
  starts = np.arange(0, len(values), size)
  counts = np.add.reduceat(np.isfinite(values).astype(int), starts)
  means = np.full(len(starts), np.nan)
  sums = np.add.reduceat(np.nan_to_num(values), starts)
  np.divide(sums, counts, out=means, where=counts > 0)
  middles = np.minimum(starts + size // 2, len(values) - 1)
  return (
    np.append(steps[middles], steps[-1]),
    np.append(means, values[-1]),
  )


def _whole_percent(value: float) -> str:
  """Returns '75 %', and '2.5 %' where it is not whole."""
  return f'{100 * value:.3g} %'


def _reference(
  plot: Plot, rows: Sequence[Row], config: Mapping[str, Any]
) -> Reference | None:
  """Returns what a chart's values are to be compared with, if anything."""
  if 'eval/loss/loss' in plot.names:
    batch_size = setting(config, 'data.batch_size')
    softmax = setting(config, 'objective.name') == 'softmax'
    if not softmax or (batch_size or 0) < 1:
      return None
    return Reference(
      math.log(batch_size), f'ln {batch_size:,}: nothing learned'
    )
  if 'train/logit_scale' in plot.names:
    return Reference(100.0, 'at most 100')
  _, levels = series(rows, f'{next(iter(plot.names))}_chance')
  if levels:
    return Reference(levels[-1], f'chance {percent(levels[-1])}')
  return None
