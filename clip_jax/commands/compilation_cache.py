"""Compiled programs kept between runs: a verb starts at once the second time.

In a program of your own, do the same before the first call of a model:
`jax.config.update('jax_compilation_cache_dir', DIR)`, or set
JAX_COMPILATION_CACHE_DIR.
"""

import os
from pathlib import Path


def use() -> None:
  """Lets JAX keep what it compiles in the user's cache folder.

  JAX_COMPILATION_CACHE_DIR, if set, has been obeyed already (empty: none is
  kept). A folder that cannot be written is left alone.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  try:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: there is no home
    return
  if not os.access(folder, os.W_OK):
    return

  import jax

  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))


def _folder() -> Path:
  root = os.environ.get('XDG_CACHE_HOME')
  return (Path(root) if root else Path.home() / '.cache') / 'clip_jax' / 'xla'
