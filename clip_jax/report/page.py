"""The page that all reports share, and how it writes numbers.

A page is one HTML file that loads nothing: `base.html` has its head and its
style sheet, and each report's template fills in the sections.
"""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
import jinja2
from markupsafe import Markup

import clip_jax
from clip_jax import files

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
)


def render(template: str, **values) -> str:
  """Returns the page that a template of this package makes of some values.

  Values are escaped, and one that is missing is an error.
  """
  return TEMPLATES.get_template(template).render(**values)


def write(path: str | os.PathLike, template: str, **values) -> None:
  """Renders a page into a file, which is replaced as a whole.

  Raises:
    UsageError, FailureError: see `files.replacing`.
  """
  page = render(template, **values)
  files.write_bytes(path, page.encode('utf-8', 'replace'))


def long_date(date: datetime.date | None = None) -> str:
  """Returns a date, by default today's, in the form '30 November 2026'."""
  return (date or datetime.date.today()).strftime('%-d %B %Y')


def percent(fraction: float | int) -> str:
  """Returns '56.2 %'; a fraction above 0 never reads as 0."""
  if 0 < fraction < 0.0005:
    return '< 0.1 %'
  return f'{100 * fraction:.1f} %'


def points(difference: float) -> str:
  """Returns a difference of fractions in percentage points, such as '+1.2'."""
  return _with_minus_sign(f'{100 * difference:+.1f}')


def cosine(similarity: float) -> str:
  """Returns a cosine similarity with two decimals."""
  return _with_minus_sign(f'{round(similarity, 2) + 0.0:.2f}')


def short_count(number: int) -> str:
  """Returns three digits and a unit, such as '1.71 M' for 1,712,345."""
  for size, unit in ((10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
    if number >= size:
      return f'{number / size:.3g} {unit}'
  return str(number)


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
  """Returns facts about this process: its devices, machine and versions."""
  kinds = [device.device_kind for device in jax.devices()]
  devices = ', '.join(
    f'{kinds.count(kind)} × {kind}' for kind in dict.fromkeys(kinds)
  )
  facts = {
    'devices': f'{devices} ({jax.default_backend()})',
    'processes': str(jax.process_count()),
    'CPU cores': str(os.cpu_count()),
    'system': f'{platform.system()} {platform.machine()}',
    'Python': platform.python_version(),
    'clip_jax': clip_jax.__version__,
  }
  for package in packages:
    try:
      facts[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return facts


def _small_units(text: str) -> Markup:
  """Returns a number with its units in smaller letters, on one line."""
  words = [
    Markup('{}' if any(c.isdigit() for c in word) else '<small>{}</small>')
    .format(word)
    for word in text.split(' ')
  ]  # fmt: skip
  return Markup('\N{NO-BREAK SPACE}').join(words)


def _with_minus_sign(number: str) -> str:
  """Replaces a hyphen by the minus sign, which is as wide as a plus."""
  return number.replace('-', '\N{MINUS SIGN}')


TEMPLATES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
TEMPLATES.filters |= {
  'percent': percent,
  'points': points,
  'cosine': cosine,
  'small_units': _small_units,
}
