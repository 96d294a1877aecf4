"""The templates of the self-contained pages.

Each page's template starts with `head.html`, and its style with `palette.css`;
a report's goes on with `frame.css`, and has the parts of `frame.html`.
"""

from pathlib import Path

import jinja2

_TEMPLATES = Path(__file__).parent / 'templates'


def environment(folder: Path = _TEMPLATES) -> jinja2.Environment:
  """Returns an environment of a folder's templates and of the common ones.

  Values are escaped, and one that was not given is an error.
  """
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader([folder, _TEMPLATES]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
