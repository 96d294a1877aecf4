"""Compiled programs kept between runs: a verb starts at once the second time.

In a program of your own, do the same before the first call of a model:
`jax.config.update('jax_compilation_cache_dir', DIR)`, or set
JAX_COMPILATION_CACHE_DIR.
"""

import os
from pathlib import Path

from clip_jax.errors import UsageError
from clip_jax.files import typed_path

_CHOICE = 'JAX_COMPILATION_CACHE_DIR'


def use() -> None:
  """Lets JAX keep what it compiles in the user's cache folder.

  JAX_COMPILATION_CACHE_DIR, if set, has been obeyed already (empty: none is
  kept), but for a `~` in it. A folder that cannot be written is left alone.
  """
  chosen = os.environ.get(_CHOICE)
  if chosen is not None and not chosen.startswith('~'):
    return
  try:
    folder = typed_path(chosen) if chosen else _folder()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, UsageError):  # UsageError: there is no home
    return
  if not os.access(folder, os.W_OK):
    return

  import jax

  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))


def _folder() -> Path:
  root = os.environ.get('XDG_CACHE_HOME')
  return typed_path(root or '~/.cache') / 'clip_jax' / 'xla'
