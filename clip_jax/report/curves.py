"""Which curves a report shows, and how their numbers are written."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from clip_jax.progress import speed
from clip_jax.report.curves_svg import Line, Reference, curves
from clip_jax.report.facts import setting
from clip_jax.report.words import percent
from clip_jax.training.metrics import Row, series


@dataclasses.dataclass(frozen=True)
class Chart:
  """One row of `CHARTS`: metrics that share an axis."""

  title: str
  unit: str
  names: Mapping[str, str]  # metric -> word; '' where it is alone
  write: Callable[[float], str]
  from_zero: bool = False
  at_least: float = -math.inf  # where the axis ends, or above


def plain(value: float | int) -> str:
  """Four significant digits: '3.215', '0.0005', '12,300'."""
  if value and not 1e-4 <= abs(value) < 1e9:
    return f'{value:.3g}'
  if abs(value) >= 1000:
    return f'{value:,.0f}'
  return f'{value:.4g}'


def whole_percent(value: float) -> str:
  """'75 %', and '2.5 %' where it is not whole."""
  return f'{100 * value:.3g} %'


CHARTS = (
  Chart(
    'Loss',
    'nats a pair',
    {
      'train/loss': 'steps',
      'eval/loss/loss': 'held out',
      'eval/train_loss/loss': 'training pairs',
    },
    plain,
  ),
  Chart(
    'Zero-shot accuracy',
    'held out',
    {'eval/zero_shot/top1': 'top-1', 'eval/zero_shot/top5': 'top-5'},
    percent,
    from_zero=True,
    at_least=1.0,
  ),
  Chart(
    'Retrieval R@1, image to text',
    '',
    {
      'eval/retrieval/image_to_text_r1': 'held out',
      'eval/train_retrieval/image_to_text_r1': 'training pairs',
    },
    percent,
    from_zero=True,
    at_least=1.0,
  ),
  Chart(
    'Retrieval R@1, text to image',
    '',
    {
      'eval/retrieval/text_to_image_r1': 'held out',
      'eval/train_retrieval/text_to_image_r1': 'training pairs',
    },
    percent,
    from_zero=True,
    at_least=1.0,
  ),
  Chart(
    'Learning rate', '', {'train/learning_rate': ''}, plain, from_zero=True
  ),
  Chart('Logit scale', '1 / temperature', {'train/logit_scale': ''}, plain),
  Chart(
    'Gradient',
    'global norm',
    {'train/grad_norm': ''},
    plain,
    from_zero=True,
  ),
  Chart(
    'Speed',
    'images/s',
    {'train/examples_per_second': ''},
    speed,
    from_zero=True,
  ),
  Chart(
    'Waiting for input',
    'share of the time',
    {'train/input_wait_fraction': ''},
    percent,
    from_zero=True,
    at_least=0.2,
  ),
  Chart(
    'Model FLOPs utilisation',
    "share of the chip's peak",
    {'train/mfu': ''},
    percent,
    from_zero=True,
    at_least=1.0,
  ),
)


def draw_charts(
  rows: Sequence[Row], config: Mapping[str, Any], hidden: Collection[str] = ()
) -> list[dict[str, Any]]:
  """Those of `CHARTS` that the run has numbers for.

  Args:
    hidden: numbers that are not drawn.
  Returns:
    Dicts: title, unit, svg, and last: (word, value) for each line.
  """
  last_step = max((row['step'] for row in rows), default=0)
  drawn = []
  for chart in CHARTS:
    found = [
      (word, Line(word or chart.title, *series(rows, name)))
      for name, word in chart.names.items()
      if name not in hidden
    ]
    found = [x for x in found if any(map(math.isfinite, x[1].values))]
    if not found:
      continue
    lines = [line for _, line in found]
    svg: Markup = curves(
      lines,
      last_step=last_step,
      write=chart.write,
      write_tick=whole_percent if chart.write is percent else None,
      reference=_reference(chart, rows, config),
      from_zero=chart.from_zero,
      at_least=chart.at_least,
    )
    drawn.append(
      {
        'title': chart.title,
        'unit': chart.unit,
        'svg': svg,
        'last': [
          (word if len(found) > 1 else '', chart.write(line.values[-1]))
          for word, line in found
        ],
      }
    )
  return drawn


def _reference(
  chart: Chart, rows: Sequence[Row], config: Mapping[str, Any]
) -> Reference | None:
  if 'train/loss' in chart.names:
    batch_size = setting(config, 'data.batch_size')
    softmax = setting(config, 'objective.name') == 'softmax'
    if not softmax or (batch_size or 0) < 1:
      return None
    return Reference(
      math.log(batch_size), f'ln {batch_size:,}: nothing learned'
    )
  if 'train/logit_scale' in chart.names:
    return Reference(100.0, 'at most 100')
  _, levels = series(rows, f'{next(iter(chart.names))}_chance')
  if levels:
    return Reference(levels[-1], f'chance {percent(levels[-1])}')
  return None
