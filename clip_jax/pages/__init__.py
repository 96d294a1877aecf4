"""What the self-contained pages share: how they are made, and their colours.

A page's folder holds its page.html, which starts with `head.html` and whose
style starts with `palette.css`; a report's goes on with `frame.css`, and has
the parts of `frame.html`.
"""

from pathlib import Path

import jinja2


def environment(folder: Path) -> jinja2.Environment:
  """Templates of a page's own folder, and of this one.

  Values are escaped, and one that was not given is an error.
  """
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
