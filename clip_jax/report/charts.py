"""The chart engine of all pages: Matplotlib figures as inline SVG.

A figure is drawn in the light palette, so that it can be viewed by itself. On
the page each of these colours becomes the style sheet's variable of that name,
and text stays text in the page's font: charts follow light and dark.
"""

import dataclasses
import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, RULE = '#1d1c1a', '#6a665e', '#dfdbd2'
ACCENT, SECOND = '#23608c', '#b3701a'
RIGHT, WRONG = '#17734f', '#b0421f'

# Inches. A chart is shown about as wide as it is drawn, so that its text stays
# legible on a phone.
WIDTH = 4.6
FONT_SIZE = 9.0  # points
BAR_HEIGHT = 0.2

Location = Literal['best', 'upper left', 'lower right', 'lower center']
_FONT = 'DejaVu Sans'
_CSS = {
  INK: 'var(--ink)',
  SOFT: 'var(--soft)',
  RULE: 'var(--rule)',
  ACCENT: 'rgb(var(--accent))',
  SECOND: 'var(--second)',
  RIGHT: 'var(--right)',
  WRONG: 'var(--wrong)',
  f"'{_FONT}', sans-serif": 'var(--sans)',
  f"'{_FONT}'": 'var(--sans)',
}


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart on a page.

  Attributes:
    title: what it shows.
    note: beside the title, small.
    svg: the drawing.
    caption: sentences below it.
    last: the name and the last value of each of its lines.
  """

  title: str
  note: str
  svg: Markup
  caption: str = ''
  last: Sequence[tuple[str, str]] = ()


def new_axes(height: float = 2.9) -> tuple[Figure, Axes]:
  """Returns a figure of some inches with one pair of axes."""
  figure = Figure(figsize=(WIDTH, height), layout='constrained')
  figure.patch.set_alpha(0)
  axes = figure.add_subplot()
  axes.patch.set_alpha(0)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(RULE)
  axes.tick_params(colors=SOFT, labelsize=FONT_SIZE, length=0)
  axes.tick_params(axis='x', pad=5)
  axes.grid(color=RULE, linewidth=0.6)
  axes.set_axisbelow(True)
  for axis in (axes.xaxis, axes.yaxis):
    axis.label.set(color=SOFT, fontsize=FONT_SIZE)
  return figure, axes


def new_bars(names: Sequence[str]) -> tuple[Figure, Axes]:
  """Returns a figure with one line for each name, the first on top."""
  figure, axes = new_axes(0.7 + BAR_HEIGHT * len(names))
  axes.grid(axis='y', visible=False)
  axes.set_yticks(range(len(names)), names, color=INK)
  axes.set_ylim(len(names) - 0.4, -0.6)
  return figure, axes


def add_legend(axes: Axes, location: Location = 'best', **layout) -> None:
  """Adds the names of what is drawn, without a box."""
  layout = {'handlelength': 1.4, **layout}
  axes.legend(
    frameon=False,
    fontsize=FONT_SIZE,
    labelcolor=INK,
    loc=location,
    **layout,
  )


def label_bar(
  axes: Axes, value: float, bar: int, text: str, rightwards: bool
) -> None:
  """Writes a number at the end of its bar."""
  axes.annotate(
    text, (value, bar), (3 if rightwards else -3, 0),
    textcoords='offset points', va='center', color=INK,
    ha='left' if rightwards else 'right', fontsize=FONT_SIZE - 0.5,
  )  # fmt: skip


def to_svg(
  figure: Figure,
  name: str,
  label: str,
  tooltips: Mapping[str, Sequence[str]] | None = None,
) -> Markup:
  """Returns a figure as an `svg` element that refers to nothing outside.

  The same figure gives the same bytes.

  Args:
    figure: drawn in the colours above.
    name: unique on the page; the ids inside are derived from it.
    label: what the chart shows, for readers who cannot see it.
    tooltips: the `gid` of a line with markers to one text for each marker,
      shown under the pointer.
  """
  file = io.BytesIO()
  settings: Any = {
    'svg.fonttype': 'none',
    'svg.hashsalt': name,
    'font.sans-serif': [_FONT],
  }
  with mpl.rc_context(settings):
    figure.savefig(file, format='svg', metadata={'Date': None})
  drawing = ET.fromstring(file.getvalue())
  for element in drawing.iter():
    _adapt(element, tooltips or {})
  drawing.attrib = {
    'viewBox': drawing.attrib['viewBox'],
    'role': 'img',
    'aria-label': label,
  }
  return Markup(ET.tostring(drawing, encoding='unicode'))


def _adapt(element: ET.Element, tooltips: Mapping[str, Sequence[str]]) -> None:
  """Makes an element of Matplotlib's SVG one of an HTML page."""
  element.tag = element.tag.rpartition('}')[2]
  element.attrib = {
    name.rpartition('}')[2]: value for name, value in element.attrib.items()
  }
  # HTML needs no whitespace between elements.
  element.tail = None
  if not (element.text or '').strip():
    element.text = None
  for child in list(element):
    # Matplotlib's style sheet would be one of the whole page.
    if child.tag.endswith(('}style', '}metadata')):
      element.remove(child)
  style = element.get('style')
  if style:
    for value, css in _CSS.items():
      style = style.replace(value, css)
    element.set('style', style)
  if element.tag == 'g':  # no reference is to a group
    texts = tooltips.get(element.attrib.pop('id', ''), ())
    markers = element.iter('{http://www.w3.org/2000/svg}use')
    for marker, text in zip(markers, texts, strict=bool(texts)):
      ET.SubElement(marker, 'title').text = text
