"""Curves as inline SVG, drawn by hand: a few kilobytes each, and coloured by
the page's style sheet, so that they follow light and dark.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

# User units. A figure is as wide as its column (320 to 410 pixels), so that
# its letters stay legible on a phone.
WIDTH, HEIGHT = 320.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 34.0, 8.0, 8.0, 22.0
MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a figure: values (not all finite, perhaps) at steps."""

  name: str
  steps: Sequence[int]
  values: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Reference:
  """A dashed horizontal line with a word on what it stands for."""

  value: float
  name: str


def curves(
  lines: Sequence[Line],
  *,
  last_step: int,
  write: Callable[[float], str],
  write_tick: Callable[[float], str] | None = None,
  reference: Reference | None = None,
  from_zero: bool = False,
  at_least: float = -math.inf,
) -> Markup:
  """Lines over steps, each with a dot at its last value.

  Args:
    lines: at least one, with at least one finite value among them.
    last_step: the right end of the axis.
    write: a value as text, for the labels under the pointer.
    write_tick: the same for the ticks; `write`, unless given.
    reference: drawn where it lies not too far from the values.
    from_zero: the vertical axis begins at 0.
    at_least: the vertical axis reaches this far.
  """
  values = [v for line in lines for v in line.values if math.isfinite(v)]
  low, high = min(values), max(values)
  if reference is not None and reference.value > high + 0.5 * (high - low):
    reference = None
  if reference is not None:
    low, high = min(low, reference.value), max(high, reference.value)
  ticks = _ticks(0.0 if from_zero else low, max(high, at_least))
  bottom, top = ticks[0], ticks[-1]

  def x(step: float | int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last_step, 1)

  def y(value: float) -> float:
    share = (value - bottom) / (top - bottom)
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

  parts = [_axes(ticks, last_step, x, y, write_tick or write)]
  if reference is not None:
    parts.append(_reference(reference, x(0), x(last_step), y))
  for i, line in enumerate(lines):
    parts.append(_line(line, i, x, y, write))
  described = '; '.join(
    f'{line.name}: {write(line.values[-1])} at step {line.steps[-1]:,}'
    for line in lines
  )
  return Markup(
    '<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>'
  ).format(WIDTH, HEIGHT, described, Markup('').join(parts))


def _axes(ticks, last_step, x, y, write) -> Markup:
  parts = []
  for tick, text in zip(ticks, _distinct(ticks, write), strict=True):
    parts.append(
      f'<line class="grid" x1="{x(0):.1f}" x2="{x(last_step):.1f}" '
      f'y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
      f'<text class="tick" text-anchor="end" x="{LEFT - 5:.1f}" '
      f'y="{y(tick) + 3:.1f}">{escape(text)}</text>'
    )
  for share, anchor in ((0.0, 'start'), (0.5, 'middle'), (1.0, 'end')):
    step = round(last_step * share)
    word = ' steps' if share == 1.0 else ''
    parts.append(
      f'<text class="tick" text-anchor="{anchor}" x="{x(step):.1f}" '
      f'y="{HEIGHT - 6:.1f}">{step:,}{word}</text>'
    )
  return Markup(''.join(parts))


def _distinct(ticks: Sequence[float], write) -> list[str]:
  """Ticks as text, with more digits where some would read alike."""
  texts = [write(tick) for tick in ticks]
  return texts if len({*texts}) == len(texts) else [f'{x:.6g}' for x in ticks]


def _reference(reference, left, right, y) -> Markup:
  at = y(reference.value)
  below = at + 11 < HEIGHT - BOTTOM  # else it would be in the steps' way
  return Markup(
    f'<line class="reference" x1="{left:.1f}" x2="{right:.1f}" '
    f'y1="{at:.1f}" y2="{at:.1f}"/>'
    f'<text class="tick" text-anchor="end" x="{right:.1f}" '
    f'y="{at + (11 if below else -4):.1f}">{escape(reference.name)}</text>'
  )


def _line(line, index, x, y, write) -> Markup:
  points = _thin(line)
  runs: list[list[tuple[int, float]]] = [[]]
  for step, value in points:
    if math.isfinite(value):
      runs[-1].append((step, value))
    elif runs[-1]:
      runs.append([])
  parts = []
  for run in runs:
    path = ' '.join(f'{x(step):.1f},{y(value):.1f}' for step, value in run)
    parts.append(f'<polyline class="line line-{index}" points="{path}"/>')
  finite = [point for point in points if math.isfinite(point[1])]
  # Few points are values that were measured, each worth a dot of its own.
  shown = finite if len(finite) <= 12 else finite[-1:]
  for step, value in shown:
    parts.append(
      f'<circle class="dot dot-{index}" cx="{x(step):.1f}" '
      f'cy="{y(value):.1f}" r="2.5"/>'
    )
  for step, value in finite[:: max(1, len(finite) // 60)]:
    parts.append(
      f'<circle class="pointer" cx="{x(step):.1f}" cy="{y(value):.1f}" r="7">'
      f'<title>{escape(line.name)} {escape(write(value))} '
      f'at step {step:,}</title></circle>'
    )
  return Markup(''.join(parts))


def _thin(line: Line) -> list[tuple[int, float]]:
  """At most MOST_POINTS points: means of neighbours, and the last value."""
  points = list(zip(line.steps, line.values, strict=True))
  group = -(-len(points) // MOST_POINTS)
  if group <= 1:
    return points
  thin = []
  for i in range(0, len(points), group):
    some = points[i : i + group]
    finite = [value for _, value in some if math.isfinite(value)]
    mean = sum(finite) / len(finite) if finite else math.nan
    thin.append((some[len(some) // 2][0], mean))
  return [*thin, points[-1]]


def _ticks(low: float, high: float) -> list[float]:
  """Three to six round numbers that enclose the values."""
  if high <= low:
    high = low + (abs(low) or 1.0)
  rough = (high - low) / 4
  power = 10.0 ** math.floor(math.log10(rough))
  size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
  first, last = math.floor(low / size), math.ceil(high / size - 1e-9)
  return [i * size for i in range(first, last + 1)]
