"""Matplotlib figures as inline SVG whose colours are those of the page.

A figure is drawn in the light palette, so that it can be looked at by itself;
in the page each of these colours becomes the variable that it stands for, and
text stays text in the page's letters. So figures follow light and dark.
"""

import io
import re

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

INK, SOFT, RULE, PAPER = '#1d1c1a', '#6a665e', '#dfdbd2', '#fbfaf7'
ACCENT, SECOND = '#23608c', '#b3701a'
RIGHT, WRONG = '#17734f', '#b0421f'

_VARIABLES = {
  INK: 'var(--ink)',
  SOFT: 'var(--soft)',
  RULE: 'var(--rule)',
  PAPER: 'var(--paper)',
  ACCENT: 'rgb(var(--accent))',
  SECOND: 'var(--second)',
  RIGHT: 'var(--right)',
  WRONG: 'var(--wrong)',
}
# Matplotlib writes one or the other, by its version.
_FONT = re.compile(r'font: ((?:\d+ )?[\d.]+px) [^;"]*|font-family: [^;"]*')
# Of every element of the page; page.css has it for figures.
_STYLE = re.compile(r'<style.*?</style>|<metadata>.*?</metadata>', re.DOTALL)


def inline(figure: Figure, name: str, described: str) -> Markup:
  """An `svg` element for a page.

  Args:
    figure: drawn in the colours above.
    name: unique on the page; ids inside are made from it.
    described: for those who cannot see it.
  """
  file = io.BytesIO()
  with mpl.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name}):
    figure.savefig(file, format='svg', metadata={'Date': None})
  text = file.getvalue().decode('utf-8')
  text = text[text.index('<svg') :]
  text = _STYLE.sub('', text)
  text = re.sub(r' xmlns(?::\w+)?="[^"]*"', '', text)
  text = re.sub(r' id="(?=[\w.]+_\d+")', f' id="{name}-', text)
  for colour, variable in _VARIABLES.items():
    text = text.replace(colour, variable)
  text = _FONT.sub(_in_our_letters, text)
  box = re.search(r'viewBox="[^"]*"', text)
  assert box
  inside = text[text.index('>') + 1 :]
  return Markup('<svg {} role="img" aria-label="{}">{}').format(
    Markup(box.group()), escape(described), Markup(inside)
  )


def _in_our_letters(font: re.Match[str]) -> str:
  size = font.group(1)
  return f'font: {size} var(--sans)' if size else 'font-family: var(--sans)'
